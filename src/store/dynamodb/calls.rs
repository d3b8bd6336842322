//! The calls on single items, each with what its failure means.

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{ReturnValue, ReturnValuesOnConditionCheckFailure as OnFailure};

use super::DynamoDbStore;
use super::ambiguity::Doubt;
use super::error::Call;
use super::expression::{Expression, names, values};
use super::table::Item;
use crate::protocol::error::StoreError;
use crate::protocol::key::RecordKey;

/// What DynamoDB said to a conditional write.
#[derive(Debug)]
pub(super) enum Verdict {
    Applied,
    /// The condition did not hold for this item. None: there was no item, or this DynamoDB, an
    /// emulator, does not show it.
    Refused(Option<Item>),
}

impl DynamoDbStore {
    /// Puts a whole item if `condition` holds for what is there.
    pub(super) async fn put(
        &self,
        item: impl Fn() -> Item,
        condition: impl Fn() -> Expression,
    ) -> Result<Verdict, StoreError> {
        let doubt = Doubt::default();
        let send = || {
            let condition = condition();
            self.client
                .put_item()
                .table_name(&self.table.name)
                .set_item(Some(item()))
                .set_expression_attribute_names(Some(names(&[&condition], &self.table)))
                .condition_expression(&*condition.text)
                .set_expression_attribute_values(values([condition]))
                .return_values_on_condition_check_failure(OnFailure::AllOld)
                .send()
        };
        let sent = doubt.of(self.pace.small(send)).await;
        match sent {
            Ok(_) => Ok(Verdict::Applied),
            Err(error) if is_refusal(&error) => {
                Ok(Verdict::Refused(match error.into_service_error() {
                    PutItemError::ConditionalCheckFailedException(refused) => refused.item,
                    _ => None,
                }))
            }
            Err(error) => Err(doubtful(self.call("PutItem").failed(error), &doubt)),
        }
    }

    /// Changes the item of `key` by `update` if `condition` holds for it.
    pub(super) async fn update(
        &self,
        key: &RecordKey,
        update: impl Fn() -> Expression,
        condition: impl Fn() -> Expression,
    ) -> Result<Verdict, StoreError> {
        let doubt = Doubt::default();
        let send = || {
            let (update, condition) = (update(), condition());
            self.client
                .update_item()
                .table_name(&self.table.name)
                .set_key(Some(self.table.key_of(self.table.id_of(key))))
                .set_expression_attribute_names(Some(names(&[&update, &condition], &self.table)))
                .update_expression(&*update.text)
                .condition_expression(&*condition.text)
                .set_expression_attribute_values(values([update, condition]))
                .return_values_on_condition_check_failure(OnFailure::AllOld)
                .send()
        };
        let sent = doubt.of(self.pace.small(send)).await;
        match sent {
            Ok(_) => Ok(Verdict::Applied),
            Err(error) if is_refusal(&error) => {
                Ok(Verdict::Refused(match error.into_service_error() {
                    UpdateItemError::ConditionalCheckFailedException(refused) => refused.item,
                    _ => None,
                }))
            }
            Err(error) => Err(doubtful(self.call("UpdateItem").failed(error), &doubt)),
        }
    }

    /// Deletes the item of `key` if `condition` holds for it.
    pub(super) async fn delete(
        &self,
        key: &RecordKey,
        condition: impl Fn() -> Expression,
    ) -> Result<Verdict, StoreError> {
        let key = || self.table.key_of(self.table.id_of(key));
        self.delete_item(key, condition, OnFailure::AllOld).await
    }

    /// Deletes the item with this key if `condition` holds for it.
    pub(super) async fn delete_item(
        &self,
        key: impl Fn() -> Item,
        condition: impl Fn() -> Expression,
        on_failure: OnFailure,
    ) -> Result<Verdict, StoreError> {
        let doubt = Doubt::default();
        let send = || {
            let condition = condition();
            self.client
                .delete_item()
                .table_name(&self.table.name)
                .set_key(Some(key()))
                .set_expression_attribute_names(Some(names(&[&condition], &self.table)))
                .condition_expression(&*condition.text)
                .set_expression_attribute_values(values([condition]))
                .return_values_on_condition_check_failure(on_failure.clone())
                .send()
        };
        let sent = doubt.of(self.pace.small(send)).await;
        match sent {
            Ok(_) => Ok(Verdict::Applied),
            Err(error) if is_refusal(&error) => {
                Ok(Verdict::Refused(match error.into_service_error() {
                    DeleteItemError::ConditionalCheckFailedException(refused) => refused.item,
                    _ => None,
                }))
            }
            Err(error) => Err(doubtful(self.call("DeleteItem").failed(error), &doubt)),
        }
    }

    /// Deletes the item of `key`, whatever it is, and says whether there was one.
    pub(super) async fn delete_any(&self, key: &RecordKey) -> Result<bool, StoreError> {
        let doubt = Doubt::default();
        let call = self
            .client
            .delete_item()
            .table_name(&self.table.name)
            .set_key(Some(self.table.key_of(self.table.id_of(key))))
            .return_values(ReturnValue::AllOld);
        doubt
            .of(call.send())
            .await
            .map(|output| output.attributes.is_some())
            .map_err(|error| doubtful(self.call("DeleteItem").failed(error), &doubt))
    }

    /// The item of `key`, as the last write left it.
    pub(super) async fn read(&self, key: &RecordKey) -> Result<Option<Item>, StoreError> {
        self.client
            .get_item()
            .table_name(&self.table.name)
            .set_key(Some(self.table.key_of(self.table.id_of(key))))
            .consistent_read(true)
            .send()
            .await
            .map(|output| output.item)
            .map_err(|error| self.call("GetItem").failed(error))
    }

    /// The item that refused a write: `seen` if it came with the refusal, as it does from
    /// DynamoDB itself, or what is there now. If that cannot be read, it may be what an earlier try
    /// of that very write left there.
    pub(super) async fn refuser(
        &self,
        key: &RecordKey,
        seen: Option<Item>,
    ) -> Result<Option<Item>, StoreError> {
        match seen {
            Some(item) => Ok(Some(item)),
            None => self.read(key).await.map_err(StoreError::maybe_applied),
        }
    }

    pub(super) fn call(&self, operation: &'static str) -> Call<'_> {
        Call {
            operation,
            table: &self.table.name,
        }
    }
}

/// Whether the condition did not hold.
fn is_refusal<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    let error = error.as_service_error();
    error.and_then(ProvideErrorMetadata::code) == Some("ConditionalCheckFailedException")
}

fn doubtful(error: StoreError, doubt: &Doubt) -> StoreError {
    if doubt.remains() {
        error.maybe_applied()
    } else {
        error
    }
}

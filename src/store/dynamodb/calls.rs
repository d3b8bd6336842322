//! The calls on single items, each with what its failure means.

use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{ReturnValue, ReturnValuesOnConditionCheckFailure as OnFailure};

use super::DynamoDbStore;
use super::doubt::Doubt;
use super::error::Call;
use super::expression::Expression;
use super::table::Item;
use crate::error::StoreError;
use crate::key::RecordKey;

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
        item: Item,
        condition: Expression,
    ) -> Result<Verdict, StoreError> {
        let doubt = Doubt::default();
        let call = self
            .client
            .put_item()
            .table_name(&self.table.name)
            .set_item(Some(item))
            .set_expression_attribute_names(Some(condition.names(&self.table)))
            .set_expression_attribute_values(some(condition.values))
            .condition_expression(condition.text)
            .return_values_on_condition_check_failure(OnFailure::AllOld);
        let send = || {
            let call = call.clone().customize();
            call.interceptor(doubt.clone()).send()
        };
        let sent = self.pace.small(send).await;
        match sent {
            Ok(_) => Ok(Verdict::Applied),
            Err(error) => match error.as_service_error() {
                Some(PutItemError::ConditionalCheckFailedException(refused)) => {
                    Ok(Verdict::Refused(refused.item.clone()))
                }
                _ => Err(doubtful(self.call("PutItem").failed(error), &doubt)),
            },
        }
    }

    /// Changes the item of `key` by `update` if `condition` holds for it.
    pub(super) async fn update(
        &self,
        key: &RecordKey,
        update: Expression,
        condition: Expression,
    ) -> Result<Verdict, StoreError> {
        let doubt = Doubt::default();
        let mut names = update.names(&self.table);
        names.extend(condition.names(&self.table));
        let mut values = update.values;
        values.extend(condition.values);
        let call = self
            .client
            .update_item()
            .table_name(&self.table.name)
            .set_key(Some(self.table.key_of(self.table.id_of(key))))
            .set_expression_attribute_names(Some(names))
            .set_expression_attribute_values(some(values))
            .update_expression(update.text)
            .condition_expression(condition.text)
            .return_values_on_condition_check_failure(OnFailure::AllOld);
        let send = || {
            let call = call.clone().customize();
            call.interceptor(doubt.clone()).send()
        };
        let sent = self.pace.small(send).await;
        match sent {
            Ok(_) => Ok(Verdict::Applied),
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(refused)) => {
                    Ok(Verdict::Refused(refused.item.clone()))
                }
                _ => Err(doubtful(self.call("UpdateItem").failed(error), &doubt)),
            },
        }
    }

    /// Deletes the item of `key` if `condition` holds for it.
    pub(super) async fn delete(
        &self,
        key: &RecordKey,
        condition: Expression,
    ) -> Result<Verdict, StoreError> {
        let key = self.table.key_of(self.table.id_of(key));
        self.delete_item(key, condition, OnFailure::AllOld).await
    }

    /// Deletes the item with this key if `condition` holds for it.
    pub(super) async fn delete_item(
        &self,
        key: Item,
        condition: Expression,
        on_failure: OnFailure,
    ) -> Result<Verdict, StoreError> {
        let doubt = Doubt::default();
        let call = self
            .client
            .delete_item()
            .table_name(&self.table.name)
            .set_key(Some(key))
            .set_expression_attribute_names(Some(condition.names(&self.table)))
            .set_expression_attribute_values(some(condition.values))
            .condition_expression(condition.text)
            .return_values_on_condition_check_failure(on_failure);
        let send = || {
            let call = call.clone().customize();
            call.interceptor(doubt.clone()).send()
        };
        let sent = self.pace.small(send).await;
        match sent {
            Ok(_) => Ok(Verdict::Applied),
            Err(error) => match error.as_service_error() {
                Some(DeleteItemError::ConditionalCheckFailedException(refused)) => {
                    Ok(Verdict::Refused(refused.item.clone()))
                }
                _ => Err(doubtful(self.call("DeleteItem").failed(error), &doubt)),
            },
        }
    }

    /// Deletes the item of `key`, whatever it is, and says whether there was one.
    pub(super) async fn delete_any(&self, key: &RecordKey) -> Result<bool, StoreError> {
        let doubt = Doubt::default();
        self.client
            .delete_item()
            .table_name(&self.table.name)
            .set_key(Some(self.table.key_of(self.table.id_of(key))))
            .return_values(ReturnValue::AllOld)
            .customize()
            .interceptor(doubt.clone())
            .send()
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

/// DynamoDB takes no values, but not none of them.
fn some(values: Item) -> Option<Item> {
    Some(values).filter(|values| !values.is_empty())
}

fn doubtful(error: StoreError, doubt: &Doubt) -> StoreError {
    if doubt.remains() {
        error.maybe_applied()
    } else {
        error
    }
}

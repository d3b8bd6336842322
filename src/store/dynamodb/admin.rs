//! Making a table, and telling what is wrong with one.

use std::error::Error;
use std::time::Duration;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::batch_get_item::BatchGetItemError;
use aws_sdk_dynamodb::operation::create_table::CreateTableError;
use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::get_item::GetItemError;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, MultiRegionConsistency,
    ScalarAttributeType, TableDescription, TableStatus, TimeToLiveSpecification, TimeToLiveStatus,
};

use super::DynamoDbStore;
use super::error::is_of_permission;
use super::expression::Expression;
use super::table::Attribute;
use super::table_error::TableError;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::key::RecordKey;
use crate::runtime::{self, sleep};

/// How long `create_table` waits for its table to become active, and for all else to be right.
const PATIENCE: Duration = Duration::from_secs(120);
const PATIENCE_AFTER: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// No record has this key: it would be a digest of zeros.
const PROBE: RecordKey = RecordKey::from_bytes([0; 32]);

impl DynamoDbStore {
    /// Makes the table as this store is set up for it: billed by request, with time to live on
    /// [`Attribute::Expiration`]. Waits until it can be used, for up to 2 minutes. A table that
    /// is there already is not changed but [checked](Self::check).
    ///
    /// Meant for development and tests; in production, the table is better made by what makes
    /// the rest of the infrastructure, with point-in-time recovery and deletion protection.
    ///
    /// # Errors
    ///
    /// When the table could not be made, or when the one that is there does not serve.
    pub async fn create_table(&self) -> Result<(), TableError> {
        self.check_names()?;
        let created = self
            .client
            .create_table()
            .table_name(&self.table.name)
            .billing_mode(BillingMode::PayPerRequest)
            .set_key_schema(Some(self.key_schema()?))
            .set_attribute_definitions(Some(self.key_definitions()?))
            .send()
            .await;
        match created {
            Ok(_) => {
                self.until_active().await?;
                self.enable_time_to_live().await?;
                self.until_it_serves().await
            }
            Err(error) => match error.as_service_error() {
                Some(CreateTableError::ResourceInUseException(_)) => self.until_it_serves().await,
                _ => Err(self.trouble("CreateTable", error)),
            },
        }
    }

    /// Says what is wrong with the table, if anything is, and how to mend it: no such table,
    /// another key, time to live disabled or on another attribute, a global table whose Regions do
    /// not see each other's claims, a permission that is missing. For the start of a program. It
    /// writes nothing; its probes cost three write units.
    ///
    /// A global table with multi-Region strong consistency serves in all its Regions. It has no
    /// time to live, which is not asked for: [`sweep`](Self::sweep) deletes what has expired.
    /// Any other global table serves only if all that write are in one Region, and is refused
    /// until [`writes_in_one_region`](Self::writes_in_one_region) says so.
    ///
    /// # Errors
    ///
    /// With the first thing that is wrong.
    pub async fn check(&self) -> Result<(), TableError> {
        self.check_names()?;
        let description = self.describe().await?;
        self.check_description(&description)?;
        if description.multi_region_consistency() != Some(&MultiRegionConsistency::Strong) {
            self.check_replicas(&description)?;
            self.check_time_to_live().await?;
        }
        self.check_permissions().await
    }

    fn check_names(&self) -> Result<(), TableError> {
        match &self.misfit {
            Some(misfit) => Err(misfit.clone().into()),
            None => Ok(()),
        }
    }

    /// Of a table without strong consistency among its Regions.
    fn check_replicas(&self, description: &TableDescription) -> Result<(), TableError> {
        let replicas = description.replicas();
        if replicas.is_empty() || self.table.one_region {
            return Ok(());
        }
        let regions = replicas.iter().map(|replica| replica.region_name());
        Err(TableError::Global {
            table: self.table.name.clone(),
            regions: regions
                .map(|region| region.unwrap_or("?").to_owned())
                .collect(),
        })
    }

    async fn describe(&self) -> Result<TableDescription, TableError> {
        let described = self
            .client
            .describe_table()
            .table_name(&self.table.name)
            .send()
            .await
            .map_err(|error| self.trouble("DescribeTable", error))?;
        described.table.ok_or_else(|| self.missing())
    }

    fn check_description(&self, description: &TableDescription) -> Result<(), TableError> {
        let table = self.table.name.clone();
        match description.table_status() {
            Some(TableStatus::Active | TableStatus::Updating) => {}
            status => {
                let status = status.map_or("of unknown status", TableStatus::as_str);
                let status = status.to_owned();
                return Err(TableError::NotReady { table, status });
            }
        }
        let (expected, found) = (self.expected_key(), key_in(description));
        if expected == found {
            return Ok(());
        }
        Err(TableError::WrongKey {
            table,
            expected,
            found,
        })
    }

    async fn check_time_to_live(&self) -> Result<(), TableError> {
        let described = self
            .client
            .describe_time_to_live()
            .table_name(&self.table.name)
            .send()
            .await
            .map_err(|error| self.trouble("DescribeTimeToLive", error))?;
        let description = described.time_to_live_description;
        let status = description
            .as_ref()
            .and_then(|description| description.time_to_live_status());
        let found = description
            .as_ref()
            .and_then(|description| description.attribute_name());
        let table = self.table.name.clone();
        let attribute = self.table.attribute(Attribute::Expiration).to_owned();
        match (status, found) {
            (Some(TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling), Some(found)) => {
                if found == attribute {
                    return Ok(());
                }
                Err(TableError::TimeToLiveElsewhere {
                    table,
                    attribute,
                    found: found.to_owned(),
                })
            }
            _ => Err(TableError::TimeToLiveDisabled { table, attribute }),
        }
    }

    /// Makes each call of the store once, the writes with a condition that never holds.
    async fn check_permissions(&self) -> Result<(), TableError> {
        let never = || Expression::new("attribute_exists(#id)", &[Attribute::Id], []);
        let key = || self.table.key_of(self.table.id_of(&PROBE));
        let touch = || Expression::new("REMOVE #chunks", &[Attribute::Chunks], []);
        self.allowed::<GetItemError, _>("dynamodb:GetItem", self.read(&PROBE).await)?;
        self.allowed::<PutItemError, _>("dynamodb:PutItem", self.put(key, never).await)?;
        let updated = self.update(&PROBE, touch, never).await;
        self.allowed::<UpdateItemError, _>("dynamodb:UpdateItem", updated)?;
        let deleted = self.delete(&PROBE, never).await;
        self.allowed::<DeleteItemError, _>("dynamodb:DeleteItem", deleted)?;
        let read = self.read_all(vec![key()], false).await;
        self.allowed::<BatchGetItemError, _>("dynamodb:BatchGetItem", read)
    }

    fn allowed<E, T>(
        &self,
        action: &'static str,
        result: Result<T, StoreError>,
    ) -> Result<(), TableError>
    where
        E: Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        match result {
            Ok(_) => Ok(()),
            Err(source) if is_denied::<E>(&source) => Err(TableError::NotAllowed {
                table: self.table.name.clone(),
                action,
                source,
            }),
            Err(error) => Err(TableError::Unknown(error)),
        }
    }

    async fn until_active(&self) -> Result<(), TableError> {
        until(PATIENCE, || async {
            self.check_description(&self.describe().await?)
        })
        .await
    }

    /// Time to live may take a moment to show, and somebody else who makes the table, to set it.
    async fn until_it_serves(&self) -> Result<(), TableError> {
        until(PATIENCE_AFTER, || self.check()).await
    }

    async fn enable_time_to_live(&self) -> Result<(), TableError> {
        let attribute = self.table.attribute(Attribute::Expiration);
        let specification = TimeToLiveSpecification::builder()
            .enabled(true)
            .attribute_name(attribute)
            .build()
            .map_err(incomplete)?;
        self.client
            .update_time_to_live()
            .table_name(&self.table.name)
            .time_to_live_specification(specification)
            .send()
            .await
            .map(drop)
            .map_err(|error| self.trouble("UpdateTimeToLive", error))
    }

    /// The key attributes in their order.
    fn key_names(&self) -> impl Iterator<Item = (&str, KeyType)> {
        let id = (self.table.attribute(Attribute::Id), KeyType::Hash);
        let sort_key = self.table.sort_key().map(|name| (name, KeyType::Range));
        std::iter::once(id).chain(sort_key)
    }

    fn key_schema(&self) -> Result<Vec<KeySchemaElement>, TableError> {
        let element = |(name, key_type)| {
            KeySchemaElement::builder()
                .attribute_name(name)
                .key_type(key_type)
                .build()
        };
        self.key_names()
            .map(element)
            .collect::<Result<_, _>>()
            .map_err(incomplete)
    }

    fn key_definitions(&self) -> Result<Vec<AttributeDefinition>, TableError> {
        let definition = |(name, _)| {
            AttributeDefinition::builder()
                .attribute_name(name)
                .attribute_type(ScalarAttributeType::S)
                .build()
        };
        self.key_names()
            .map(definition)
            .collect::<Result<_, _>>()
            .map_err(incomplete)
    }

    fn expected_key(&self) -> String {
        let names = self.key_names().map(|(name, _)| format!("`{name}` (S)"));
        names.collect::<Vec<_>>().join(" and ")
    }

    fn missing(&self) -> TableError {
        TableError::Missing {
            table: self.table.name.clone(),
        }
    }

    /// What the failure of a call that concerns the table as a whole says of it.
    fn trouble<E>(&self, operation: &'static str, error: SdkError<E>) -> TableError
    where
        E: Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let code = error
            .as_service_error()
            .and_then(ProvideErrorMetadata::code);
        let is_missing = code == Some("ResourceNotFoundException");
        let is_denied = code.is_some_and(is_of_permission);
        let source = self.call(operation).failed(error);
        match operation {
            _ if is_missing => self.missing(),
            _ if is_denied => TableError::NotAllowed {
                table: self.table.name.clone(),
                action: action_of(operation),
                source,
            },
            _ => TableError::Unknown(source),
        }
    }
}

fn action_of(operation: &'static str) -> &'static str {
    match operation {
        "CreateTable" => "dynamodb:CreateTable",
        "DescribeTable" => "dynamodb:DescribeTable",
        "DescribeTimeToLive" => "dynamodb:DescribeTimeToLive",
        "UpdateTimeToLive" => "dynamodb:UpdateTimeToLive",
        other => other,
    }
}

/// The key of a table, as [`DynamoDbStore::expected_key`] writes it.
fn key_in(description: &TableDescription) -> String {
    let definitions = description.attribute_definitions();
    let described = description.key_schema().iter().map(|element| {
        let name = element.attribute_name();
        let definition = definitions
            .iter()
            .find(|definition| definition.attribute_name() == name);
        let key_type = definition.map_or("?", |definition| definition.attribute_type().as_str());
        format!("`{name}` ({key_type})")
    });
    described.collect::<Vec<_>>().join(" and ")
}

fn is_denied<E>(error: &StoreError) -> bool
where
    E: Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    error
        .source()
        .and_then(|source| source.downcast_ref::<SdkError<E>>())
        .and_then(SdkError::as_service_error)
        .and_then(ProvideErrorMetadata::code)
        .is_some_and(is_of_permission)
}

fn incomplete(error: impl Error + Send + Sync + 'static) -> TableError {
    let message = "a request about the table could not be put together";
    let error = StoreError::new(StoreErrorKind::Unusable, message).with_source(error);
    TableError::Unknown(error)
}

/// Asks until it is well, or for as long as time may mend what is wrong.
async fn until<F>(patience: Duration, ask: impl Fn() -> F) -> Result<(), TableError>
where
    F: Future<Output = Result<(), TableError>>,
{
    let gives_up = runtime::now() + patience;
    let mut pause = FIRST_PAUSE;
    loop {
        let trouble = match ask().await {
            Ok(()) => return Ok(()),
            Err(trouble) => trouble,
        };
        let may_pass = matches!(
            trouble,
            TableError::Missing { .. }
                | TableError::NotReady { .. }
                | TableError::TimeToLiveDisabled { .. }
        );
        if !may_pass || runtime::now() + pause > gives_up {
            return Err(trouble);
        }
        sleep(pause).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

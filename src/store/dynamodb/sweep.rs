//! Deletes what has expired from tables that have no time to live.

use aws_sdk_dynamodb::types::{AttributeValue, ReturnValuesOnConditionCheckFailure as OnFailure};

use super::DynamoDbStore;
use super::calls::Verdict;
use super::expression::{Expression, names, values};
use super::item::number;
use super::table::{Attribute, Item};
use crate::protocol::clock::Timestamp;
use crate::protocol::error::StoreError;

impl DynamoDbStore {
    /// Deletes the records whose time to live is over at `now`, and parts of answers with them,
    /// and returns how many items that were. For tables that have no time to live of their own:
    /// those of multi-Region strong consistency, and some emulators. Other items of a shared
    /// table are left alone.
    ///
    /// It reads the whole table, at half a read unit for each 4 KB, and a deletion costs a write
    /// unit for each KB of what it deletes. One process that calls it now and then is enough; two
    /// at a time do no harm. It needs the permission `dynamodb:Scan`.
    ///
    /// # Errors
    ///
    /// As of any other call. What was deleted before is deleted.
    pub async fn sweep(&self, now: Timestamp) -> Result<u64, StoreError> {
        self.fits()?;
        let mut deleted = 0;
        let mut after = None;
        loop {
            let (expired, last) = self.scan_expired(now, after).await?;
            for item in expired {
                deleted += u64::from(self.delete_expired(item).await?);
            }
            match last {
                None => return Ok(deleted),
                last => after = last,
            }
        }
    }

    /// The keys and times of a page of items that have expired, and the key to go on after.
    async fn scan_expired(
        &self,
        now: Timestamp,
        after: Option<Item>,
    ) -> Result<(Vec<Item>, Option<Item>), StoreError> {
        let filter = Expression::new(
            "#expiration < :now",
            &[Attribute::Expiration],
            [(":now", number(now.as_micros() / 1_000_000))],
        );
        let mut projection = "#expiration, #id".to_owned();
        let mut names = names(&[&filter], &self.table);
        let id = self.table.attribute(Attribute::Id).to_owned();
        names.insert(Attribute::Id.placeholder().to_owned(), id);
        if let Some(sort_key) = self.table.sort_key() {
            projection.push_str(", #sort_key");
            names.insert("#sort_key".to_owned(), sort_key.to_owned());
        }
        let output = self
            .client
            .scan()
            .table_name(&self.table.name)
            .set_exclusive_start_key(after)
            .filter_expression(&*filter.text)
            .projection_expression(projection)
            .set_expression_attribute_names(Some(names))
            .set_expression_attribute_values(values([filter]))
            .send()
            .await
            .map_err(|error| self.call("Scan").failed(error))?;
        let last = output.last_evaluated_key.filter(|key| !key.is_empty());
        let mut found = output.items.unwrap_or_default();
        found.retain(|item| self.table.is_own(item));
        Ok((found, last))
    }

    /// Deletes an item if its time is still the one that was seen.
    async fn delete_expired(&self, mut item: Item) -> Result<bool, StoreError> {
        let name = self.table.attribute(Attribute::Expiration);
        let seen = item.remove(name).unwrap_or(AttributeValue::Null(true));
        let is_still = || {
            let seen = [(":seen", seen.clone())];
            Expression::new("#expiration = :seen", &[Attribute::Expiration], seen)
        };
        let key = || item.clone();
        let verdict = self.delete_item(key, is_still, OnFailure::None).await?;
        Ok(matches!(verdict, Verdict::Applied))
    }
}

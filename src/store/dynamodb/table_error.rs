//! What can be wrong with a table.

use std::error::Error;
use std::fmt;

use super::table::Misfit;
use crate::protocol::error::StoreError;

/// What is wrong with a table, and how to mend it.
#[derive(Debug)]
#[non_exhaustive]
pub enum TableError {
    /// Two attributes of the items have one name.
    AmbiguousName {
        /// The name.
        name: String,
    },
    /// A name or a key is empty, or longer than DynamoDB allows.
    DoesNotFit {
        /// Which, and by how much.
        why: String,
    },
    /// The table has replicas that take writes which do not see each other.
    Global {
        /// The table.
        table: String,
        /// The other Regions.
        regions: Vec<String>,
    },
    /// There is no such table.
    Missing {
        /// Its name.
        table: String,
    },
    /// The credentials do not allow something that the store needs.
    NotAllowed {
        /// The table.
        table: String,
        /// What the IAM policy has to allow.
        action: &'static str,
        /// What DynamoDB said.
        source: StoreError,
    },
    /// The table is being made, changed or deleted.
    NotReady {
        /// The table.
        table: String,
        /// Its status.
        status: String,
    },
    /// The time to live of the table is off, so that no record is ever deleted.
    TimeToLiveDisabled {
        /// The table.
        table: String,
        /// The attribute that it has to go by.
        attribute: String,
    },
    /// The time to live of the table goes by another attribute.
    TimeToLiveElsewhere {
        /// The table.
        table: String,
        /// The attribute that it has to go by.
        attribute: String,
        /// The attribute that it goes by.
        found: String,
    },
    /// It could not be told.
    Unknown(
        /// What the store met with.
        StoreError,
    ),
    /// The key of the table is not the one that the store is set up for.
    WrongKey {
        /// The table.
        table: String,
        /// The key that it has to have, such as `id (S)`.
        expected: String,
        /// The key that it has.
        found: String,
    },
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AmbiguousName { name } => Misfit::Ambiguous(name.clone()).fmt(f),
            Self::DoesNotFit { why } => {
                write!(f, "the DynamoDB store cannot work as it is set up: {why}")
            }
            Self::Global { table, regions } => write!(
                f,
                "the DynamoDB table `{table}` is a global one, with replicas in {}, and claims in \
                 two Regions do not see each other; use a table of multi-Region strong \
                 consistency, or send all requests to one Region and say so with \
                 `DynamoDbStore::writes_in_one_region`",
                regions.join(", ")
            ),
            Self::Missing { table } => write!(
                f,
                "the DynamoDB table `{table}` does not exist in this region and account; make it, \
                 for example with `DynamoDbStore::create_table`, or correct the name or the region"
            ),
            Self::NotAllowed { table, action, .. } => write!(
                f,
                "the credentials may not call {action} on the DynamoDB table `{table}`; allow it \
                 in their IAM policy"
            ),
            Self::NotReady { table, status } => write!(
                f,
                "the DynamoDB table `{table}` is {status}; wait until it is ACTIVE"
            ),
            Self::TimeToLiveDisabled { table, attribute } => write!(
                f,
                "the time to live of the DynamoDB table `{table}` is off, so that its records \
                 stay for ever; enable it on the attribute `{attribute}`"
            ),
            Self::TimeToLiveElsewhere {
                table,
                attribute,
                found,
            } => write!(
                f,
                "the time to live of the DynamoDB table `{table}` goes by `{found}` and not by \
                 `{attribute}`; rename `Attribute::Expiration` to `{found}`, or enable it on \
                 `{attribute}`"
            ),
            Self::Unknown(error) => write!(f, "the DynamoDB table could not be checked: {error}"),
            Self::WrongKey {
                table,
                expected,
                found,
            } => write!(
                f,
                "the key of the DynamoDB table `{table}` is {found} and not {expected}; use \
                 another table, or say with `rename`, `sort_key` or `fixed_sort_key` how it is \
                 laid out"
            ),
        }
    }
}

impl From<Misfit> for TableError {
    fn from(misfit: Misfit) -> Self {
        match misfit {
            Misfit::Ambiguous(name) => Self::AmbiguousName { name },
            misfit => Self::DoesNotFit {
                why: misfit.to_string(),
            },
        }
    }
}

impl Error for TableError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::NotAllowed { source, .. } => Some(source),
            Self::Unknown(error) => error.source(),
            _ => None,
        }
    }
}

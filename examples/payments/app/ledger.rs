//! The business system: which cards were charged, in an SQLite file that several nodes may share.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use rusqlite::types::Type;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tower_idempotency::record::FencingToken;
use tower_idempotency::{Attempt, Clock, RecordKey, SystemClock, Timestamp};

/// How long to wait for another node that writes.
const BUSY: Duration = Duration::from_secs(5);

/// A declined charge has a row as well, for its id: it tells an attempt from a replay.
///
/// `record_key` is the key that the charge was made under, so that a reconciliation finds it.
/// A row in `fences` keeps attempts at a key with a lower token than its own from charging.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS charges (
        id          INTEGER PRIMARY KEY AUTOINCREMENT,
        amount      INTEGER NOT NULL,
        currency    TEXT    NOT NULL,
        description TEXT,
        metadata    TEXT    NOT NULL,
        declined    INTEGER NOT NULL,
        record_key  BLOB,
        made_at     INTEGER NOT NULL
    );
    CREATE INDEX IF NOT EXISTS charges_by_record_key ON charges (record_key);
    CREATE TABLE IF NOT EXISTS fences (
        record_key  BLOB    PRIMARY KEY,
        token       INTEGER NOT NULL
    );
";
const COLUMNS: &str = "id, amount, currency, description, metadata, made_at";

/// What a client asks for.
pub(crate) struct NewCharge {
    pub(crate) amount: u32,
    pub(crate) currency: String,
    pub(crate) source: String,
    pub(crate) description: Option<String>,
    pub(crate) metadata: BTreeMap<String, String>,
}

#[derive(Serialize)]
pub(crate) struct Charge {
    id: String,
    object: &'static str,
    amount: u32,
    amount_captured: u32,
    captured: bool,
    created: u64,
    currency: String,
    description: Option<String>,
    livemode: bool,
    metadata: BTreeMap<String, String>,
    paid: bool,
    payment_method_details: Value,
    status: &'static str,
}

/// Clones share the connection.
#[derive(Clone)]
pub(crate) struct Ledger {
    connection: Arc<Mutex<Connection>>,
    clock_skew: Duration,
}

impl Ledger {
    /// `clock_skew`: how far apart the clocks of two nodes on this file may be.
    pub(crate) fn open(file: &Path, clock_skew: Duration) -> rusqlite::Result<Self> {
        let connection = Connection::open(file)?;
        connection.busy_timeout(BUSY)?;
        write_ahead(&connection)?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
            clock_skew,
        })
    }

    /// Charges the card, unless another attempt has made sure that this one did not; then there
    /// is no charge.
    pub(crate) async fn charge(
        &self,
        new: NewCharge,
        attempt: Option<Attempt>,
    ) -> rusqlite::Result<Option<Charge>> {
        self.with(move |ledger| insert(ledger, &new, false, attempt.as_ref()))
            .await
    }

    /// Notes that the card was declined, and gives the id of the charge that was not made.
    pub(crate) async fn decline(
        &self,
        new: NewCharge,
        attempt: Option<Attempt>,
    ) -> rusqlite::Result<Option<String>> {
        let declined = self
            .with(move |ledger| insert(ledger, &new, true, attempt.as_ref()))
            .await?;
        Ok(declined.map(|charge| charge.id))
    }

    /// The charge made under a key since it was claimed; one from before belongs to an earlier
    /// use of the key, which is long forgotten. If there is none, there never will be, for
    /// attempts with a lower token than `token` cannot charge any more.
    pub(crate) async fn settle(
        &self,
        key: RecordKey,
        since: Timestamp,
        token: FencingToken,
    ) -> rusqlite::Result<Option<Charge>> {
        // Two nodes took the times.
        let since = since.as_micros() as i64 - self.clock_skew.as_micros() as i64;
        self.with(move |ledger| {
            ledger.execute(
                "INSERT INTO fences VALUES (?1, ?2)
                 ON CONFLICT DO UPDATE SET token = max(token, excluded.token)",
                params![key.as_bytes(), token.as_u64() as i64],
            )?;
            let sql = format!(
                "SELECT {COLUMNS} FROM charges
                 WHERE record_key = ?1 AND made_at >= ?2 AND NOT declined
                 ORDER BY id DESC LIMIT 1"
            );
            let found = ledger.query_row(&sql, params![key.as_bytes(), since], charge_in);
            found.optional()
        })
        .await
    }

    pub(crate) async fn find(&self, id: &str) -> rusqlite::Result<Option<Charge>> {
        let Some(id) = number_in(id) else {
            return Ok(None);
        };
        self.with(move |ledger| {
            let sql = format!("SELECT {COLUMNS} FROM charges WHERE id = ?1 AND NOT declined");
            ledger.query_row(&sql, [id], charge_in).optional()
        })
        .await
    }

    /// The newest `limit` charges, of all or of those that are older than the one with this id.
    pub(crate) async fn newest(
        &self,
        limit: usize,
        before: Option<&str>,
    ) -> rusqlite::Result<Vec<Charge>> {
        let before = before.and_then(number_in).unwrap_or(i64::MAX);
        self.with(move |ledger| {
            let mut listed = ledger.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM charges
                 WHERE id < ?1 AND NOT declined ORDER BY id DESC LIMIT ?2"
            ))?;
            listed
                .query_map(params![before, limit as i64], charge_in)?
                .collect()
        })
        .await
    }

    /// Away from the threads that serve, for another node may hold the file for a while.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> rusqlite::Result<T> {
        let ledger = Arc::clone(&self.connection);
        let worked = spawn_blocking(move || {
            // Each change is one statement: a panic leaves none half done.
            work(&ledger.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match worked.await {
            Ok(result) => result,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

/// Readers and writers then keep out of each other's way. For this change alone, SQLite does not
/// wait for another node that starts at the same time.
fn write_ahead(ledger: &Connection) -> rusqlite::Result<()> {
    const PAUSE: Duration = Duration::from_millis(20);
    let mut waited = Duration::ZERO;
    loop {
        match ledger.pragma_update(None, "journal_mode", "WAL") {
            Err(error) if is_busy(&error) && waited < BUSY => {
                sleep(PAUSE);
                waited += PAUSE;
            }
            changed => return changed,
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

fn insert(
    ledger: &Connection,
    new: &NewCharge,
    declined: bool,
    attempt: Option<&Attempt>,
) -> rusqlite::Result<Option<Charge>> {
    // A timeout may have ended the attempt while this waited for the ledger. What became of the key
    // is decided then, so nothing may be charged any more.
    if attempt.is_some_and(|attempt| attempt.begin_effects().is_err()) {
        return Ok(None);
    }
    let sql = format!(
        "INSERT INTO charges
            (amount, currency, description, metadata, declined, record_key, made_at)
         SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7
         WHERE NOT EXISTS (SELECT 1 FROM fences WHERE record_key = ?6 AND token > ?8)
         RETURNING {COLUMNS}"
    );
    let inserted = ledger.query_row(
        &sql,
        params![
            new.amount,
            new.currency,
            new.description,
            json!(new.metadata).to_string(),
            declined,
            attempt.map(|attempt| attempt.key().record_key().as_bytes()),
            SystemClock.now().as_micros() as i64,
            attempt.map(|attempt| attempt.token().as_u64() as i64),
        ],
        charge_in,
    );
    inserted.optional()
}

fn charge_in(row: &Row<'_>) -> rusqlite::Result<Charge> {
    let amount = row.get("amount")?;
    let made_at: i64 = row.get("made_at")?;
    let metadata: String = row.get("metadata")?;
    let metadata = serde_json::from_str(&metadata)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(4, Type::Text, error.into()))?;
    Ok(Charge {
        id: id_of(row.get("id")?),
        object: "charge",
        amount,
        amount_captured: amount,
        captured: true,
        created: made_at.unsigned_abs() / 1_000_000,
        currency: row.get("currency")?,
        description: row.get("description")?,
        livemode: false,
        metadata,
        paid: true,
        payment_method_details: json!({
            "type": "card",
            "card": { "brand": "visa", "last4": "4242" },
        }),
        status: "succeeded",
    })
}

fn id_of(number: i64) -> String {
    format!("ch_{number:016}")
}

fn number_in(id: &str) -> Option<i64> {
    let number = id.strip_prefix("ch_")?.parse().ok()?;
    (id_of(number) == id).then_some(number)
}

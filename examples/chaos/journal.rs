//! What every attempt leaves behind, whatever becomes of its process: a line when its handler
//! begins, and one when it ends.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use tower_idempotency::Attempt;

use crate::fleet::now;

/// Where a node writes its lines.
#[derive(Clone)]
pub(crate) struct Journal(Arc<File>);

impl Journal {
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self(Arc::new(file)))
    }

    /// Notes when the handlers of `routes` begin and end.
    pub(crate) fn around(self, routes: Router) -> Router {
        routes.layer(from_fn(move |request: Request, next: Next| {
            let journal = self.clone();
            async move { journal.noted(request, next).await }
        }))
    }

    async fn noted(&self, request: Request, next: Next) -> Response {
        let Some(attempt) = request.extensions().get::<Attempt>() else {
            return next.run(request).await;
        };
        let (key, token) = (attempt.key().as_str().to_owned(), attempt.token());
        let pid = std::process::id();
        self.write(&format!("{key} {token} began {pid} {}", now()));
        let response = next.run(request).await;
        self.write(&format!(
            "{key} {token} ended {} {}",
            response.status().as_u16(),
            now()
        ));
        response
    }

    /// Notes that the handler of an attempt blocks its thread from here on.
    pub(crate) fn blocks(&self, attempt: &Attempt) {
        let (key, token) = (attempt.key().as_str(), attempt.token());
        let pid = std::process::id();
        self.write(&format!("{key} {token} blocks {pid} {}", now()));
    }

    /// In one write, so that the lines of many processes do not mix.
    fn write(&self, line: &str) {
        if let Err(error) = (&*self.0).write_all(format!("{line}\n").as_bytes()) {
            panic!("the journal cannot be written, so nothing can be judged: {error}");
        }
    }
}

/// One attempt at a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noted {
    /// Also when it sent its claim, in microseconds since the Unix epoch: the clocks are one clock
    /// here. A slow wire may bring the claim to the store much later.
    pub(crate) token: u64,
    /// When its handler began.
    pub(crate) began: u64,
    pub(crate) pid: u32,
    /// Whether its handler blocked its thread for longer than its lease.
    pub(crate) has_blocked: bool,
    pub(crate) ended: Option<Ended>,
}

impl Noted {
    /// Whether a timeout answered for its handler: the payments example has no such answers.
    pub(crate) fn is_timed_out(&self) -> bool {
        self.ended
            .is_some_and(|ended| matches!(ended.status, 408 | 504))
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    /// The status that its handler, or a timeout around it, answered with.
    pub(crate) status: u16,
    /// When, in microseconds since the Unix epoch.
    pub(crate) at: u64,
}

/// All attempts at each key, in the order of their fencing tokens.
pub(crate) fn read(path: &Path) -> crate::Result<HashMap<String, Vec<Noted>>> {
    let mut attempts: HashMap<String, Vec<Noted>> = HashMap::new();
    for line in std::fs::read_to_string(path)?.lines() {
        let [key, token, what, number, at] = line.split(' ').collect::<Vec<_>>()[..] else {
            return Err(format!("a line of the journal is broken: {line}").into());
        };
        let token = token.parse()?;
        let of_key = attempts.entry(key.to_owned()).or_default();
        match what {
            "began" => of_key.push(Noted {
                token,
                began: at.parse()?,
                pid: number.parse()?,
                has_blocked: false,
                ended: None,
            }),
            _ => {
                let noted = of_key.iter_mut().find(|noted| noted.token == token);
                let noted = noted.ok_or("an attempt went on that never began")?;
                match what {
                    "blocks" => noted.has_blocked = true,
                    _ => {
                        noted.ended = Some(Ended {
                            status: number.parse()?,
                            at: at.parse()?,
                        });
                    }
                }
            }
        }
    }
    for of_key in attempts.values_mut() {
        of_key.sort_by_key(|noted| noted.token);
    }
    Ok(attempts)
}

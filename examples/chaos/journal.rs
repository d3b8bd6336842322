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
        self.write(&format!("{key} {token} began {pid}"));
        let response = next.run(request).await;
        self.write(&format!(
            "{key} {token} ended {}",
            response.status().as_u16()
        ));
        response
    }

    /// In one write, so that the lines of many processes do not mix.
    fn write(&self, line: &str) {
        if let Err(error) = (&*self.0).write_all(format!("{line}\n").as_bytes()) {
            panic!("the journal cannot be written, so nothing can be judged: {error}");
        }
    }
}

/// One attempt at a key.
#[derive(Debug)]
pub(crate) struct Noted {
    /// Also when it claimed, in microseconds since the Unix epoch: the clocks are one clock here.
    pub(crate) token: u64,
    pub(crate) pid: u32,
    /// The status that its handler answered with.
    pub(crate) ended: Option<u16>,
}

/// All attempts at each key, in the order of their fencing tokens.
pub(crate) fn read(path: &Path) -> crate::Result<HashMap<String, Vec<Noted>>> {
    let mut attempts: HashMap<String, Vec<Noted>> = HashMap::new();
    for line in std::fs::read_to_string(path)?.lines() {
        let [key, token, what, number] = line.split(' ').collect::<Vec<_>>()[..] else {
            return Err(format!("a line of the journal is broken: {line}").into());
        };
        let token = token.parse()?;
        let of_key = attempts.entry(key.to_owned()).or_default();
        match what {
            "began" => of_key.push(Noted {
                token,
                pid: number.parse()?,
                ended: None,
            }),
            _ => {
                let noted = of_key.iter_mut().find(|noted| noted.token == token);
                noted.ok_or("an attempt ended that never began")?.ended = Some(number.parse()?);
            }
        }
    }
    for of_key in attempts.values_mut() {
        of_key.sort_by_key(|noted| noted.token);
    }
    Ok(attempts)
}

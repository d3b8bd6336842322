//! Requests along one path, to have their instructions counted by `benches/instructions/run`:
//!
//! ```text
//! paths PATH REQUESTS
//! ```

use std::convert::Infallible;
use std::error::Error;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, header};
use http_body_util::{Full, combinators::UnsyncBoxBody};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{Fingerprint, IDEMPOTENCY_KEY, IdempotencyLayer, KeyParts};

type Body = UnsyncBoxBody<Bytes, Infallible>;

const TARGET: &str = "/v1/charges";
const REPLAYED: usize = 1_000;
/// There are no keys for more requests.
const MOST: usize = 3_000;
/// What the layer hashes of a request beside its key, in bytes: the body, and some 50 that are
/// about it. SHA-256 takes 64 at a time.
const FINGERPRINTED: usize = 1_066;
/// What it hashes of the caller: half of the record's name, the host and the credentials.
const CALLER: usize = 53;

#[derive(Clone, Copy)]
enum Path {
    /// Without the layer.
    Bare,
    /// The SHA-256 alone that the layer takes of a request.
    Hash,
    NoKey,
    First,
    Replay,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = match args.next().as_deref() {
        Some("bare") => Path::Bare,
        Some("hash") => Path::Hash,
        Some("no-key") => Path::NoKey,
        Some("first") => Path::First,
        Some("replay") => Path::Replay,
        other => return Err(format!("no such path: {other:?}").into()),
    };
    let requests: usize = args.next().ok_or("how many requests?")?.parse()?;
    if requests > MOST {
        return Err(format!("at most {MOST} requests").into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(run(path, requests))
}

async fn run(path: Path, requests: usize) -> ! {
    let mut bare = service_fn(charge);
    let mut layered = IdempotencyLayer::new(MemoryStore::new()).layer(bare);
    // The same in all counts, and so in no difference between two of them: what has been recorded
    // before, and the making of the keys.
    for number in 0..REPLAYED {
        send(&mut layered, &IDEMPOTENCY_KEY, key(number)).await;
    }
    let keys: Vec<HeaderValue> = (0..MOST)
        .map(|number| match path {
            Path::Replay => key(number % REPLAYED),
            _ => key(REPLAYED + number),
        })
        .collect();
    // Without a key, a request has as many fields.
    let other = HeaderName::from_static("x-request-field");
    for key in keys.into_iter().take(requests) {
        match path {
            Path::Bare => send(&mut bare, &other, key).await,
            Path::Hash => hash(&key),
            Path::NoKey => send(&mut layered, &other, key).await,
            Path::First | Path::Replay => send(&mut layered, &IDEMPOTENCY_KEY, key).await,
        }
    }
    // To free what there is now would be counted, and is no request's.
    std::process::exit(0);
}

async fn send<S>(service: &mut S, name: &HeaderName, key: HeaderValue)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let request = Request::post(TARGET)
        .header(header::HOST, HeaderValue::from_static("api.example.com"))
        .header(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )
        .header(
            header::AUTHORIZATION,
            HeaderValue::from_static("Bearer sk_test_123"),
        )
        .header(name, key)
        .body(body(vec![b'b'; 1024]))
        .expect("the request is valid");
    let service = service.ready().await.expect("it is ready");
    let response = service.call(request).await;
    drop(std::hint::black_box(response));
}

/// A key of 36 bytes.
fn key(number: usize) -> HeaderValue {
    HeaderValue::try_from(format!("{number:036}")).expect("digits are valid")
}

fn hash(key: &HeaderValue) {
    // What goes in before an input: a byte that says of what it is, and two of its length.
    const REQUEST: &[u8] = &[b'b'; FINGERPRINTED - 3];
    std::hint::black_box(Fingerprint::of([REQUEST]));
    const WHO: &[u8] = &[b'c'; CALLER - 2];
    std::hint::black_box(Fingerprint::of([WHO]));
    let parts = KeyParts {
        method: "POST",
        target: TARGET,
        key: key.to_str().expect("digits are text"),
        ..KeyParts::default()
    };
    std::hint::black_box(parts.record_key());
}

async fn charge(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    drop(request);
    let response = Response::builder()
        .header(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )
        .header(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))
        // As where they are made anew for each answer.
        .header("request-id", "req_0123456789abcdefghi")
        .header(header::LOCATION, "/v1/charges/ch_0123456789abcdef")
        .header("stripe-version", HeaderValue::from_static("2026-01-01"))
        .body(body(&[b'a'; 200][..]));
    Ok(response.expect("the response is valid"))
}

fn body(bytes: impl Into<Bytes>) -> Body {
    Body::new(Full::new(bytes.into()))
}

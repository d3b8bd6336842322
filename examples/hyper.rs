//! The layer on a bare hyper server: HTTP/1 and HTTP/2, no framework.
//!
//! ```text
//! cargo run --example hyper [ADDRESS]
//! ```
//!
//! However often this is sent, there is one order:
//!
//! ```text
//! $ curl -H 'Idempotency-Key: 1' -d paper http://127.0.0.1:3000/orders
//! order 1: paper
//! ```

use std::error::Error;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tower::ServiceBuilder;
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{GuardedBody, IdempotencyLayer};

type Answer = Response<GuardedBody<Full<Bytes>>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1);
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:3000")).await?;
    println!("listening on http://{}", listener.local_addr()?);

    let idempotency = IdempotencyLayer::new(MemoryStore::new());
    let handle = idempotency.handle();
    let service = ServiceBuilder::new()
        // hyper's `Incoming` cannot be made again from bytes that were read; `GuardedBody` can.
        .layer(idempotency.for_any_body())
        .service_fn(order);
    let service = TowerToHyperService::new(service);

    // Each connection holds a receiver: it hears when to stop, and we hear when all have.
    let (stop, stopped) = watch::channel(());
    let mut interrupted = pin!(tokio::signal::ctrl_c());
    loop {
        tokio::select! {
            _ = &mut interrupted => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    tokio::spawn(serve(stream, service.clone(), stopped.clone()));
                }
                Err(error) => eprintln!("a connection was not accepted: {error}"),
            },
        }
    }
    drop(stopped);
    stop.send_replace(());

    // First the connections, then the runs whose connection is gone.
    let ended = async {
        stop.closed().await;
        handle.shutdown().await;
    };
    if timeout(Duration::from_secs(30), ended).await.is_err() {
        eprintln!("stopped with {} runs in flight", handle.in_flight());
    }
    Ok(())
}

/// Takes its time, and says how many orders there were so far.
async fn order(
    request: Request<GuardedBody<Incoming>>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    static ORDERS: AtomicU64 = AtomicU64::new(0);
    let what = request.into_body().collect().await?.to_bytes();
    sleep(Duration::from_secs(1)).await;
    let number = ORDERS.fetch_add(1, Ordering::Relaxed) + 1;
    let receipt = format!("order {number}: {}\n", String::from_utf8_lossy(&what));
    Ok(Response::new(Full::from(receipt)))
}

/// Serves one connection until it ends, or until it has answered its last request after `stopped`.
async fn serve<S>(stream: TcpStream, service: S, mut stopped: watch::Receiver<()>)
where
    S: Service<Request<Incoming>, Response = Answer, Error = hyper::Error, Future: Send>,
    S: Send + 'static,
{
    let builder = Builder::new(TokioExecutor::new());
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let served = tokio::select! {
        served = connection.as_mut() => served,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        eprintln!("a connection failed: {error}");
    }
}

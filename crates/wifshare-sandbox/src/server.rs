//! The HTTP server: connections, limits, and routes.

use std::{
    error::Error,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};

use crate::{
    answer::{self, Body, HangUp, Outcome, Stop},
    batches, identity_endpoint, issuer, messages, platforms, random,
    state::State,
    token_endpoint,
};

/// The limit for receiving a request's headers, and again for its body.
const PATIENCE: Duration = Duration::from_secs(30);

/// Listens at a loopback address. Call it inside a runtime.
///
/// # Errors
/// The address is in use, is not loopback, or does not exist on this machine.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    // A thousand processes that start together should not wait for a second round of SYN.
    const BACKLOG: u32 = 4096;
    if !address.ip().is_loopback() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{address} is not a loopback address")));
    }
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves connections until it is dropped.
pub(crate) async fn serve(listener: TcpListener, state: Arc<State>) {
    loop {
        let Ok((connection, _)) = listener.accept().await else {
            // Probably out of file descriptors: retry.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        _ = connection.set_nodelay(true);
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            tokio::time::sleep(state.take_accept_delay()).await;
            let answer = service_fn(|request| Box::pin(answer(&state, request)));
            let mut serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(connection), answer);
            // An error means that the client closed the connection, or a fault did.
            let ended = (&mut serving).await;
            if ended.is_err_and(|error| is_reset(&error)) {
                // Closing with a zero linger time sends RST.
                _ = serving.into_parts().io.into_inner().set_zero_linger();
            }
        });
    }
}

fn is_reset(error: &hyper::Error) -> bool {
    error.source().and_then(|cause| cause.downcast_ref()) == Some(&HangUp::Reset)
}

async fn answer(state: &State, request: Request<Incoming>) -> Result<Response<Body>, HangUp> {
    let request_id = random::name("req_");
    let is_the_issuers = is_the_issuers(request.uri().path());
    let mut response = match route(state, request, &request_id).await {
        Ok(response) => response,
        Err(Stop::HangUp(how)) => return Err(how),
        Err(Stop::Error { status, message, retry_after_s }) => {
            let mut response = answer::error(status, &message, &request_id);
            if let Some(seconds) = retry_after_s {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            response
        }
    };
    let request_id = HeaderValue::from_str(&request_id).expect("letters and digits");
    response.headers_mut().insert("request-id", request_id);
    // The time of the response, by the clock of the issuer or of the API.
    let now = if is_the_issuers { state.issuer_now() } else { state.server_now() };
    if let Some(date) = date(now) {
        response.headers_mut().insert(header::DATE, date);
    }
    Ok(response)
}

fn is_the_issuers(path: &str) -> bool {
    path == identity_endpoint::PATH || path.starts_with("/.well-known/")
}

/// An HTTP date (RFC 9110 §5.6.7). `None` after the year 9999, which the format cannot express.
fn date(now: Duration) -> Option<HeaderValue> {
    const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);
    let date = (now < YEAR_10000).then(|| httpdate::fmt_http_date(UNIX_EPOCH + now))?;
    HeaderValue::from_str(&date).ok()
}

async fn route(state: &State, request: Request<Incoming>, request_id: &str) -> Outcome {
    const SMALL_BODY_LIMIT: usize = 1 << 20;
    let (head, body) = request.into_parts();
    let ok = |value| Ok(answer::json(StatusCode::OK, &value));
    match (&head.method, head.uri.path()) {
        (&Method::GET | &Method::HEAD, "/") => Ok(answer::text(StatusCode::OK, "the wifshare sandbox\n")),
        (&Method::GET, identity_endpoint::PATH) => {
            let query = head.uri.query().unwrap_or_default();
            identity_endpoint::answer(state, &head.headers, query).await
        }
        (&Method::POST, platforms::AZURE_PIPELINES) => {
            platforms::azure_pipelines(state, &head.headers, head.uri.query().unwrap_or_default()).await
        }
        (&Method::GET, platforms::GOOGLE_CLOUD) => {
            platforms::google_cloud(state, &head.headers, head.uri.query().unwrap_or_default()).await
        }
        (&Method::GET, platforms::AZURE_VM) => {
            platforms::azure_vm(state, &head.headers, head.uri.query().unwrap_or_default()).await
        }
        (&Method::GET, platforms::AZURE_APP_SERVICE) => {
            platforms::azure_app_service(state, &head.headers, head.uri.query().unwrap_or_default()).await
        }
        (&Method::POST, path) if path.starts_with(platforms::ENTRA) && path.ends_with(platforms::ENTRA_TOKEN) => {
            let body = read(body, SMALL_BODY_LIMIT).await?;
            platforms::entra(state, &body).await
        }
        (&Method::GET, "/.well-known/openid-configuration") => ok(issuer::metadata(&state.base_url)),
        (&Method::GET, "/.well-known/jwks") => ok(issuer::jwks()),
        (&Method::POST, "/v1/oauth/token") => {
            let body = read(body, SMALL_BODY_LIMIT).await?;
            token_endpoint::answer(state, &body, request_id).await
        }
        (&Method::POST, "/v1/messages") => {
            messages::authorize(state, &head.headers)?;
            let body = read(body, answer::BODY_LIMIT).await?;
            messages::answer(state, &body).await
        }
        (&Method::POST, "/v1/messages/count_tokens") => {
            messages::authorize(state, &head.headers)?;
            read(body, answer::BODY_LIMIT).await?;
            state.ledger().counters.other_calls_accepted += 1;
            ok(messages::count_tokens())
        }
        (&Method::GET | &Method::POST, path) if path.starts_with(batches::PATH) => {
            messages::authorize(state, &head.headers)?;
            read(body, answer::BODY_LIMIT).await?;
            state.ledger().counters.other_calls_accepted += 1;
            batches::answer(&state.base_url, &head.method, path)
        }
        (&Method::GET, "/v1/models") => {
            messages::authorize(state, &head.headers)?;
            state.ledger().counters.other_calls_accepted += 1;
            ok(messages::models())
        }
        (&Method::GET, path) if path.strip_prefix("/v1/models/").is_some_and(|id| !id.is_empty()) => {
            messages::authorize(state, &head.headers)?;
            state.ledger().counters.other_calls_accepted += 1;
            ok(messages::model(path.strip_prefix("/v1/models/").unwrap_or_default()))
        }
        (&Method::GET, "/sandbox/counters") => ok(json!(state.ledger().counters)),
        (&Method::GET, "/sandbox/history") => ok(json!(state.ledger().history())),
        (&Method::GET, "/sandbox/settings") => ok(json!(state.settings())),
        (&Method::PUT, "/sandbox/settings") => {
            let body = read(body, SMALL_BODY_LIMIT).await?;
            let settings = serde_json::from_slice(&body)
                .map_err(|error| Stop::error(StatusCode::BAD_REQUEST, error.to_string()))?;
            state.set_settings(settings);
            ok(json!(state.settings()))
        }
        (&Method::POST, "/sandbox/revoke") => {
            state.ledger().revoke();
            ok(json!({"revoked": true}))
        }
        (_, path) => Err(Stop::error(StatusCode::NOT_FOUND, format!("Not found: {} {path}", head.method))),
    }
}

async fn read(body: Incoming, limit: usize) -> Result<Bytes, Stop> {
    match tokio::time::timeout(PATIENCE, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(cause)) if cause.is::<LengthLimitError>() => {
            Err(Stop::error(StatusCode::PAYLOAD_TOO_LARGE, "Request exceeds the maximum size"))
        }
        Ok(Err(_)) => Err(Stop::HangUp(HangUp::Close)),
        Err(_) => Err(Stop::error(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    }
}

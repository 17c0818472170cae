//! The discovery client against answers that are written down byte for byte, right and wrong ones.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

use std::time::Duration;

use ringwire::discovery::{DiscoveryClient, DiscoveryError, Refusal};
use ringwire_proto::entry::{ClientPart, ENTRY_VERSION, Entry, ServerPart};
use ringwire_proto::identity::SecretKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Answers one connection with `answer`; gives back the request it read.
async fn once(answer: impl Into<Vec<u8>>) -> (DiscoveryClient, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = DiscoveryClient::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let answer = answer.into();
    let task = tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        let request = read_request(&mut connection).await;
        // The client may hang up in the middle of an answer that is too long.
        connection.write_all(&answer).await.ok();
        connection.shutdown().await.ok();
        request
    });
    (client, task)
}

async fn read_request(connection: &mut tokio::net::TcpStream) -> String {
    let mut request = Vec::new();
    loop {
        connection.read_buf(&mut request).await.unwrap();
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
            .unwrap_or(0);
        if body.len() >= length {
            return text.into_owned();
        }
    }
}

fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn key(number: u8) -> SecretKey {
    SecretKey::from_bytes(&[number; 32]).unwrap()
}

fn client_entry(secret_key: &SecretKey) -> Entry {
    let mut entry = Entry {
        version: ENTRY_VERSION.to_owned(),
        sequence: 3,
        timestamp_ns: 17,
        client: Some(ClientPart { delegated_servers: Some(vec![key(9).public_key()]) }),
        ..Entry::default()
    };
    entry.sign(secret_key);
    entry
}

fn server_entry(secret_key: &SecretKey) -> Entry {
    let mut entry = Entry {
        version: ENTRY_VERSION.to_owned(),
        server: Some(ServerPart { address: "203.0.113.7:8081".to_owned(), ..ServerPart::default() }),
        ..Entry::default()
    };
    entry.sign(secret_key);
    entry
}

#[tokio::test]
async fn an_entry_is_asked_for_by_its_key_and_comes_back_whole() {
    let stored = client_entry(&key(1));
    let (client, task) = once(answer("200 OK", &stored.to_json())).await;
    let entry = client.entry(&key(1).public_key()).await.unwrap();
    assert_eq!(entry, stored);
    entry.verify().unwrap();
    let request = task.await.unwrap();
    let line = format!("GET /dmsg-discovery/entry/{} HTTP/1.1\r\n", key(1).public_key());
    assert!(request.starts_with(&line), "{request}");
}

#[tokio::test]
async fn only_the_discoverys_own_words_with_404_are_a_not_found() {
    let own_words = "{\"message\":\"entry of public key is not found\",\"code\":404}";
    let asked = key(1).public_key();
    for (status, body, genuine) in [
        ("404 Not Found", own_words, true),
        // From here on something else speaks, or contradicts itself.
        ("404 Not Found", "404 page not found\n", false),
        ("404 Not Found", "<html>entry of public key is not found</html>", false),
        ("404 Not Found", "", false),
        ("404 Not Found", "{\"message\":\"no such host\",\"code\":404}", false),
        ("500 Internal Server Error", own_words, false),
        ("502 Bad Gateway", "", false),
        ("200 OK", own_words, false),
        ("410 Gone", own_words, false),
    ] {
        let (client, task) = once(answer(status, body)).await;
        let error = client.entry(&asked).await.unwrap_err();
        assert_eq!(error.is_not_found(), genuine, "{status} {body}: {error}");
        assert!(error.to_string().contains(client.url()), "{error}");
        task.await.unwrap();
    }
}

#[tokio::test]
async fn the_entry_of_another_key_is_no_answer() {
    let (client, _task) = once(answer("200 OK", &client_entry(&key(2)).to_json())).await;
    let error = client.entry(&key(1).public_key()).await.unwrap_err();
    assert!(matches!(error, DiscoveryError::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn lists_pass_over_what_is_no_server_and_none_is_an_empty_list() {
    let (server, visor) = (server_entry(&key(1)).to_json(), client_entry(&key(2)).to_json());
    let (client, task) = once(answer("200 OK", &format!("[{server},{{\"static\":7}},null,{visor}]"))).await;
    let servers = client.available_servers().await.unwrap();
    assert_eq!(
        servers,
        [server_entry(&key(1))].map(|entry| Entry { signature: servers[0].signature, ..entry })
    );
    assert!(task.await.unwrap().starts_with("GET /dmsg-discovery/available_servers HTTP/1.1\r\n"));

    let none = "{\"message\":\"no delegated dmsg servers available for remote\",\"code\":404}";
    let (client, task) = once(answer("404 Not Found", none)).await;
    assert_eq!(client.all_servers().await.unwrap(), []);
    assert!(task.await.unwrap().starts_with("GET /dmsg-discovery/all_servers HTTP/1.1\r\n"));

    let (client, _task) = once(answer("404 Not Found", "404 page not found\n")).await;
    let error = client.all_servers().await.unwrap_err();
    assert!(matches!(error, DiscoveryError::Status { status: 404, .. }), "{error}");
}

#[tokio::test]
async fn posts_and_deletes_carry_the_exact_text() {
    let entry = server_entry(&key(1));
    let (client, task) = once(answer("200 OK", "{\"message\":\"wrote a new entry\",\"code\":200}")).await;
    client.put(&entry).await.unwrap();
    let request = task.await.unwrap();
    assert!(request.starts_with("POST /dmsg-discovery/entry/ HTTP/1.1\r\n"), "{request}");
    assert!(request.ends_with(&format!("\r\n\r\n{}", entry.to_json())), "{request}");

    let (client, task) = once(answer("200 OK", "{\"message\":\"deleted entry\",\"code\":200}")).await;
    client.delete(&entry).await.unwrap();
    let request = task.await.unwrap();
    assert!(request.starts_with("DELETE /dmsg-discovery/entry HTTP/1.1\r\n"), "{request}");
    assert!(request.ends_with(&entry.to_json()), "{request}");
}

#[tokio::test]
async fn refusals_name_the_rule() {
    let sequence = "entry validation error: sequence field of new entry is not sequence of old entry + 1";
    let body = format!("{{\"message\":\"{sequence}\",\"code\":422}}");
    let (client, _task) = once(answer("422 Unprocessable Entity", &body)).await;
    let error = client.put(&server_entry(&key(1))).await.unwrap_err();
    assert_eq!(error.refusal(), Some(Refusal::Sequence));
    assert!(error.is_transient());

    let (client, _task) =
        once(answer("401 Unauthorized", "{\"message\":\"invalid signature\",\"code\":401}")).await;
    let error = client.put(&server_entry(&key(1))).await.unwrap_err();
    assert_eq!(error.refusal(), Some(Refusal::Signature));
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_rate_limit_names_the_wait_and_a_redirection_its_target() {
    let (client, _task) =
        once("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n").await;
    let error = client.put(&server_entry(&key(1))).await.unwrap_err();
    let DiscoveryError::RateLimited { retry_after, .. } = error else { panic!("{error}") };
    assert_eq!(retry_after, Duration::from_secs(7));

    let moved = "HTTP/1.1 301 Moved\r\nLocation: https://new.example/\r\nContent-Length: 0\r\n\r\n";
    let (client, _task) = once(moved).await;
    let error = client.all_servers().await.unwrap_err().to_string();
    assert!(error.contains("https://new.example/: name that one"), "{error}");
}

#[tokio::test]
async fn health_keeps_what_it_knows() {
    let body = "{\"build_info\":{\"version\":\"1.2\",\"commit\":\"c\",\"date\":\"d\"},\"started_at\":\"2026-11-20T08:57:56.8Z\",\
                \"dmsg_servers\":[\"aa\"],\"next_years_member\":[1]}";
    let (client, _task) = once(answer("200 OK", body)).await;
    let health = client.health().await.unwrap();
    assert_eq!(health.build_info.unwrap().version, "1.2");
    assert_eq!(health.started_at, "2026-11-20T08:57:56.8Z");
    assert_eq!(health.dmsg_servers, ["aa"]);
    assert_eq!(health.service_name, "");
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let endless = "HTTP/1.1 200 OK\r\n\r\n".to_owned() + &"x".repeat(1 << 20);
    let (client, _task) = once(endless).await;
    let error = client.entry(&key(1).public_key()).await.unwrap_err();
    assert!(matches!(error, DiscoveryError::Oversize { .. }), "{error}");
}

#[tokio::test]
async fn answers_that_are_no_http_or_break_off_are_typed() {
    for text in ["\0\0\0\0\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", ""] {
        let (client, _task) = once(text).await;
        let error = client.entry(&key(1).public_key()).await.unwrap_err();
        assert!(matches!(error, DiscoveryError::Unreachable { .. }), "{text:?}: {error}");
        assert!(error.is_transient());
    }
    for text in ["[]", "null", "7", "{\"static\":\"zz\"}", ""] {
        let (client, _task) = once(answer("200 OK", text)).await;
        let error = client.entry(&key(1).public_key()).await.unwrap_err();
        assert!(matches!(error, DiscoveryError::Malformed { .. }), "{text:?}: {error}");
    }
}

#[tokio::test]
async fn silence_ends_at_the_limit() {
    // Accepts by its backlog and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = DiscoveryClient::new(&format!("http://{}", silent.local_addr().unwrap())).unwrap();
    let client = client.with_limit(Duration::from_millis(100));
    let error = client.health().await.unwrap_err();
    assert!(matches!(error, DiscoveryError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn nobody_there_is_unreachable_with_the_cause() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = DiscoveryClient::new(&format!("http://{gone}")).unwrap().health().await.unwrap_err();
    assert!(matches!(error, DiscoveryError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn the_words_of_a_discovery_move_no_terminal_and_fill_no_log() {
    let long = "x".repeat(10_000);
    for (status, body) in [
        ("500 No", format!("{{\"message\":\"\\u001b[2Jgone\\nERROR faked\\u0007 {long}\",\"code\":500}}")),
        ("500 No", format!("\x1b[2Jgone\nERROR faked\x07 {long}")),
        ("422 No", format!("{{\"message\":\"\\u001b[2Jgone\\nERROR faked {long}\",\"code\":422}}")),
    ] {
        let (client, _task) = once(answer(status, &body)).await;
        let text = client.put(&server_entry(&key(1))).await.unwrap_err().to_string();
        assert!(text.contains("gone ERROR faked") && !text.contains(char::is_control), "{text:?}");
        assert!(text.len() < 500, "{text}");
    }
}

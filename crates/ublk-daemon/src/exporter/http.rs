//! As much of HTTP/1 as a scrape needs: the head of a request, and one answer, after which the connection is closed.

/// The longest head of a request in bytes.
const LONGEST: usize = 8 << 10;

/// The text formats of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus's own, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    pub(super) const PLAIN: &str = "text/plain; charset=utf-8";

    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_client::encoding::prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Its path, without a query.
    pub(super) path: String,
    /// The answer's body is not wanted (HEAD).
    pub(super) head_only: bool,
    /// The format it prefers.
    pub(super) format: Format,
}

/// Why there is no head.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// It does not end.
    TooLong,
    /// The client went, or took too long.
    Gone,
}

/// Reads the head of a request. `read` returns 0 at the end, or when time is up.
pub(super) fn head(mut read: impl FnMut(&mut [u8]) -> usize) -> Result<Vec<u8>, Head> {
    let (mut head, mut some) = (Vec::new(), [0; 1024]);
    while !ends(&head) {
        if head.len() >= LONGEST {
            return Err(Head::TooLong);
        }
        match read(&mut some) {
            0 => return Err(Head::Gone),
            len => head.extend(some.iter().take(len)),
        }
    }
    Ok(head)
}

fn ends(head: &[u8]) -> bool {
    let has = |end: &[u8]| head.windows(end.len()).any(|part| part == end);
    has(b"\r\n\r\n") || has(b"\n\n")
}

/// Understands the head of a request, or returns the status that refuses it.
pub(super) fn parse(head: &[u8]) -> Result<Request, u16> {
    let text = str::from_utf8(head).map_err(|_| 400_u16)?;
    let mut lines = text.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(400);
    };
    if !version.starts_with("HTTP/1.") || !target.starts_with('/') {
        return Err(400);
    }
    let head_only = match method {
        "GET" => false,
        "HEAD" => true,
        _ => return Err(405),
    };
    let accepts = lines
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.eq_ignore_ascii_case("accept"))
        .any(|(_, value)| value.contains("application/openmetrics-text"));
    Ok(Request {
        path: target.split('?').next().unwrap_or_default().to_owned(),
        head_only,
        format: match accepts {
            true => Format::OpenMetrics,
            false => Format::Prometheus,
        },
    })
}

/// An answer, as it goes over the wire.
pub(super) fn response(status: u16, kind: &str, body: &[u8]) -> Vec<u8> {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        _ => "Service Unavailable",
    };
    let more = match status {
        405 => "Allow: GET, HEAD\r\n",
        503 => "Retry-After: 1\r\n",
        _ => "",
    };
    let mut bytes = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{more}Connection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend(body);
    bytes
}

/// Leaves only the head of an answer.
pub(super) fn without_body(reply: &mut Vec<u8>) {
    let end = reply.windows(4).position(|part| part == b"\r\n\r\n");
    reply.truncate(end.map_or(0, |at| at + 4));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood_or_refused() {
        let ok = |text: &str| parse(text.as_bytes()).expect("understood");
        let plain = ok("GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!((plain.path.as_str(), plain.head_only), ("/metrics", false));
        assert_eq!(plain.format, Format::Prometheus);
        let accept = "ACCEPT: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3";
        let open = ok(&format!("HEAD /metrics HTTP/1.0\n{accept}\n\n"));
        assert_eq!((open.format, open.head_only), (Format::OpenMetrics, true));
        for (garbage, status) in [
            (&b"POST /metrics HTTP/1.1\r\n\r\n"[..], 405),
            (b"GET\r\n\r\n", 400),
            (b"GET metrics HTTP/1.1\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1 x\r\n\r\n", 400),
            (b"GET /metrics HTTP/2\r\n\r\n", 400),
            (b"\xff\xfe\x00\r\n\r\n", 400),
            (b"\r\n\r\n", 400),
        ] {
            assert_eq!(parse(garbage), Err(status), "{garbage:?}");
        }
    }

    #[test]
    fn a_head_is_bounded() {
        assert_eq!(head(|buf| buf.len()), Err(Head::TooLong));
        assert_eq!(head(|_| 0), Err(Head::Gone));
        let mut parts = [&b"GET / HTTP/1.1\r"[..], b"\n\r", b"\n"].into_iter();
        let whole = head(|buf| {
            let part = parts.next().expect("three parts");
            buf[..part.len()].copy_from_slice(part);
            part.len()
        });
        assert_eq!(whole, Ok(b"GET / HTTP/1.1\r\n\r\n".to_vec()));
    }

    #[test]
    fn an_answer_says_its_length() {
        let mut reply = response(200, Format::PLAIN, b"hello");
        let text = String::from_utf8(reply.clone()).expect("text");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("Content-Length: 5\r\n"));
        assert!(text.ends_with("\r\n\r\nhello"));
        without_body(&mut reply);
        assert!(reply.ends_with(b"\r\n\r\n"));
    }
}

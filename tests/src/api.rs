//! A client of the control API that shares no code with the replicator's own: requests as a script would make them.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::lab::Host;

/// Where the daemon listens unless told otherwise.
pub const SOCKET: &str = "/run/replicator/control.sock";

/// Time that an answer may take on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A name as a part of a path: everything but letters, digits and `-._~` as `%XX` (RFC 3986, section 2.3).
pub fn segment(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// A connection to the daemon of a host, kept open from request to request.
#[derive(Debug)]
pub struct Api {
    stream: BufReader<UnixStream>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The header, in small letters but for values.
    pub header: Vec<(String, String)>,
    /// The body.
    pub text: String,
}

impl Answer {
    /// The body as JSON; null where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }
}

impl Api {
    /// Connects to the daemon of a host.
    ///
    /// # Errors
    /// Where none listens.
    pub fn connect(host: &Host) -> Result<Self> {
        let stream = host.run(|| Ok(UnixStream::connect(SOCKET)?))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Makes a request and waits for the answer.
    ///
    /// # Errors
    /// Where the connection ends before.
    pub fn request(&mut self, method: &str, path: &str, body: &str) -> Result<Answer> {
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
        // One write: a daemon that ends in between has read nothing.
        self.stream.get_mut().write_all((head + body).as_bytes())?;
        self.answer()
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// Where the connection has ended.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.get_mut().write_all(bytes)?)
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// Where the connection ends before.
    pub fn answer(&mut self) -> Result<Answer> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("the connection ended");
        }
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no status line")?;
        let mut header = Vec::new();
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse()?;
            }
            header.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status, header, text: String::from_utf8(body)? })
    }
}

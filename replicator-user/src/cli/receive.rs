//! `replicator receive`: what arrives, one line a frame.

use std::{
    fmt,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::ControlFlow,
    process::ExitCode,
    sync::atomic::Ordering,
    time::Duration,
};

use anstyle::Style;
use anyhow::bail;
use replicator_common::DEFAULT_UDP_PORT;

use super::signal;
use crate::client::{Delivery, OpenError, ReceiveCounts, Receiver, ReceiverSettings, Source, ranges::Ranges};

const EXAMPLES: &str = "\
Examples:
  Frames over UDP, IPv4 and IPv6, until Ctrl-C:
    replicator receive
  Ten frames, each as a JSON object; fails where two seconds pass without one:
    replicator receive --count 10 --timeout 2 --json
  Straight Ethernet, payloads in hexadecimal:
    replicator receive --interface eth0 --hex";

/// Bytes of a payload that a line shows.
const PREVIEW_BYTES: usize = 32;

/// Print the frames that arrive here, one a line
///
/// The summary at the end goes to standard error.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ReceiveArgs {
    /// UDP port
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_UDP_PORT)]
    port: u16,
    /// Receive on this address only
    #[arg(long, value_name = "IP")]
    bind: Option<IpAddr>,
    /// Receive straight Ethernet (0xAB37) on this device instead of UDP
    #[arg(long, value_name = "NAME", conflicts_with_all = ["port", "bind"])]
    interface: Option<String>,
    /// Stop after this many frames
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Stop when no frame came for this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Print a JSON object a line, and the summary as one
    #[arg(long)]
    json: bool,
    /// Show payloads in hexadecimal: the start of each, or with --json the whole
    #[arg(long)]
    hex: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "not a number of seconds".into())
}

impl ReceiveArgs {
    fn open(&self) -> Result<Receiver, OpenError> {
        let open = |source: Source| Receiver::open(&source, &ReceiverSettings::default());
        let udp = |ip| Source::Udp { bind: SocketAddr::new(ip, self.port), share: false };
        match (&self.interface, self.bind) {
            (Some(interface), _) => open(Source::Ethernet { interface: interface.clone() }),
            (None, Some(ip)) => open(udp(ip)),
            (None, None) => match open(udp(Ipv6Addr::UNSPECIFIED.into())) {
                Err(OpenError::System { error, .. }) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                    open(udp(Ipv4Addr::UNSPECIFIED.into()))
                }
                result => result,
            },
        }
    }

    /// Opens, prints, sums up.
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let mut receiver = self.open()?;
        receiver.set_timeout(self.timeout);
        let stop = signal::stop_flag()?;
        let mut out = anstream::stdout().lock();
        let mut seen = 0;
        let mut written = Ok(());
        let received = receiver.for_each(&stop, |delivery| {
            seen += 1;
            written = print(&mut out, &delivery, self);
            if written.is_err() || self.count == Some(seen) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        summarize(receiver.counts(), receiver.dropped()?, self.json);
        received?;
        match written {
            // Whoever read the lines has seen enough: `replicator receive | head`.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            result => result?,
        }
        match self.count {
            Some(count) if seen < count && !stop.load(Ordering::Relaxed) => {
                bail!("only {seen} of {count} frames came before the timeout")
            }
            _ => Ok(ExitCode::SUCCESS),
        }
    }
}

fn print(out: &mut impl Write, delivery: &Delivery<'_>, args: &ReceiveArgs) -> io::Result<()> {
    if args.json {
        writeln!(out, "{}", object(delivery, args.hex))?;
    } else {
        writeln!(out, "{}", Line { delivery, hex: args.hex })?;
    }
    // Where it goes to a file or a pipe, whoever waits for the frame is to see it now.
    out.flush()
}

fn summarize(counts: ReceiveCounts, dropped: u32, json: bool) {
    let ReceiveCounts { delivered, truncated, version, length, foreign, too_long } = counts;
    let skipped = counts.skipped();
    let mut out = anstream::stderr();
    let result = if json {
        let summary = serde_json::json!({
            "frames": delivered, "dropped_by_kernel": dropped, "skipped": skipped, "truncated": truncated,
            "version": version, "length": length, "foreign": foreign, "too_long": too_long,
        });
        writeln!(out, "{summary}")
    } else if skipped == 0 {
        writeln!(out, "frames received: {delivered}; dropped by the kernel at this socket: {dropped}")
    } else {
        writeln!(
            out,
            "frames received: {delivered}; dropped by the kernel at this socket: {dropped}; skipped: {skipped} \
             ({truncated} truncated, {version} of another BIER version, {length} with an unknown BitString length, \
             {foreign} without BIER, {too_long} too long)"
        )
    };
    // Standard error is closed: nobody is left to tell.
    drop(result);
}

fn object(delivery: &Delivery<'_>, hex: bool) -> serde_json::Value {
    let id = delivery.bift_id();
    let header = delivery.header;
    let (name, payload) = if hex {
        ("payload_hex", Hex(delivery.payload).to_string())
    } else {
        ("payload", String::from_utf8_lossy(delivery.payload).into_owned())
    };
    serde_json::json!({
        "bift_id": id.get(), "table": id.table(), "generation": id.generation(), "rank": delivery.source_rank(),
        "ttl": header.ttl(), "entropy": header.entropy(), "dscp": header.dscp(), "proto": header.proto(),
        "length": delivery.bits.as_bytes().len() * 8, "bits": delivery.bits.iter().collect::<Vec<_>>(),
        "payload_bytes": delivery.payload.len(), name: payload,
    })
}

/// A frame for people.
struct Line<'a> {
    delivery: &'a Delivery<'a>,
    hex: bool,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bold, dim) = (Style::new().bold(), Style::new().dimmed());
        let Delivery { header, bits, payload } = *self.delivery;
        let id = header.bift_id();
        if let (Some(table), Some(generation)) = (id.table(), id.generation()) {
            let experts: Vec<u32> = self.delivery.experts().collect();
            let experts = Ranges(experts.into_iter());
            write!(f, "table {bold}{table}{bold:#} generation {generation} experts {bold}{experts}{bold:#}")?;
        } else {
            let bits: Vec<u32> = bits.iter().map(|bit| bit as u32).collect();
            write!(f, "bift {bold}{id}{bold:#} bits {bold}{}{bold:#}", Ranges(bits.into_iter()))?;
        }
        write!(f, " of {} rank {} ttl {}", bits.as_bytes().len() * 8, header.bfir_id(), header.ttl())?;
        write!(f, " entropy {} payload {} bytes", header.entropy(), payload.len())?;
        let start = &payload[..payload.len().min(PREVIEW_BYTES)];
        let more = if payload.len() > PREVIEW_BYTES { "…" } else { "" };
        if self.hex {
            write!(f, " {dim}{}{more}{dim:#}", Hex(start))
        } else {
            write!(f, " {dim}\"{}{more}\"{dim:#}", Text(start))
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Bytes as text; what is none, or could move a terminal's cursor, is escaped.
struct Text<'a>(&'a [u8]);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                match u8::try_from(character) {
                    Ok(byte) if byte.is_ascii() => write!(f, "{}", byte.escape_ascii())?,
                    _ => write!(f, "{}", character.escape_debug())?,
                }
            }
            write!(f, "{}", chunk.invalid().escape_ascii())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        receive: ReceiveArgs,
    }

    fn parse(line: &str) -> Result<ReceiveArgs, String> {
        let words = std::iter::once("receive").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.receive).map_err(|error| error.to_string())
    }

    /// BIFT-id 0x80102 (expert table 1, generation 2) or 0x00102, TTL 9, entropy 3, rank 0x1234, bits 1, 2 and 10.
    fn packet(id: u8, payload: &[u8]) -> Vec<u8> {
        let header = [id, 0x10, 0x21, 0x09, 0x50, 0x10, 0x00, 0x03, 0x0b, 0xbe, 0x12, 0x34];
        [&header[..], &[0, 0, 0, 0, 0, 0, 0x02, 0x03], payload].concat()
    }

    fn with(packet: &[u8], show: impl FnOnce(Delivery<'_>) -> String) -> String {
        let (header, bits, payload) = replicator_common::bier::split(packet).unwrap();
        show(Delivery { header, bits, payload })
    }

    fn line(packet: &[u8], hex: bool) -> String {
        let colored = with(packet, |delivery| Line { delivery: &delivery, hex }.to_string());
        anstream::adapter::strip_str(&colored).to_string()
    }

    #[test]
    fn a_line_says_what_is_in_the_frame() {
        assert_eq!(
            line(&packet(0x80, b"h\xc3\xa9\x1b[2J\xff"), false),
            r#"table 1 generation 2 experts 0-1,9 of 64 rank 4660 ttl 9 entropy 3 payload 8 bytes "hé\x1b[2J\xff""#
        );
        assert_eq!(
            line(&packet(0x00, &[0xab; 33]), true),
            format!(
                "bift 0x00102 bits 1-2,10 of 64 rank 4660 ttl 9 entropy 3 payload 33 bytes {}…",
                "ab".repeat(32)
            )
        );
    }

    #[test]
    fn an_object_says_the_same() {
        let text = with(&packet(0x80, b"hi"), |delivery| object(&delivery, true).to_string());
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({
            "bift_id": 0x80102, "table": 1, "generation": 2, "rank": 0x1234, "ttl": 9, "entropy": 3, "dscp": 46,
            "proto": 62, "length": 64, "bits": [1, 2, 10], "payload_bytes": 2, "payload_hex": "6869",
        });
        assert_eq!(read, expected);
        let node = with(&packet(0x00, "µ".as_bytes()), |delivery| object(&delivery, false).to_string());
        assert!(node.contains(r#""table":null"#) && node.contains(r#""payload":"µ""#), "{node}");
    }

    #[test]
    fn the_examples_of_the_help_are_understood() {
        let lines: Vec<&str> =
            EXAMPLES.lines().filter_map(|line| line.trim().strip_prefix("replicator receive")).collect();
        assert_eq!(lines.len(), 3);
        for line in lines {
            parse(line).unwrap();
        }
        assert_eq!(parse("--timeout 0.5").unwrap().timeout, Some(Duration::from_millis(500)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (line, said) in [
            ("--interface eth0 --port 9", "cannot be used with"),
            ("--timeout=-1", "number of seconds"),
            ("--timeout x", "number of seconds"),
            ("--count 0", "count"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(said), "{line}: {error}");
        }
    }
}

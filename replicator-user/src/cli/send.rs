//! `replicator send`: frames for a set of destinations, by hand.

use std::{
    convert::Infallible,
    fs,
    hash::{BuildHasher as _, RandomState},
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use replicator_common::{
    DEFAULT_UDP_PORT,
    bier::{BiftId, BitStringLength, PROTO_EXPERT},
};

use super::signal;
use crate::{
    client::{Destinations, Dispatcher, DispatcherSettings, Transport, ranges},
    config::MacAddr,
};

const EXAMPLES: &str = "\
Examples:
  Experts 3, 17 and 200 to 203 of table 4, through the origin veth:
    replicator send --to 169.254.81.2 --table 4 --experts 3,17,200-203 --payload hello
  A load of 2,048-byte payloads for a minute, spread over the replicas of hot experts:
    replicator send --to 169.254.81.2 --table 4 --experts 3,17 --bytes 2048 --rate 50000 --count 3000000 --entropy random
  Nodes 1 and 5 of a node table, straight over Ethernet:
    replicator send --to 02:00:00:00:00:02 --interface eth0 --bift-id 0x00123 --bits 1,5 --length 64 --payload @update.bin";

/// Send frames to a set of experts or nodes
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("to table").required(true).args(["table", "bift_id"]))]
#[command(group = clap::ArgGroup::new("destinations").required(true).args(["experts", "bits"]))]
pub(super) struct SendArgs {
    /// Where frames go: an IP address, with a port where it is not 8138 (10.0.0.1:9000, [fd00::1]:9000), or a MAC
    /// address for straight Ethernet
    #[arg(long, value_name = "ADDRESS")]
    to: Target,
    /// Device that frames leave by; Ethernet needs it, UDP goes by the routes without it
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Expert table
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(..2048))]
    table: Option<u16>,
    /// Generation of the expert table; 0 is the newest
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "bift_id")]
    generation: u8,
    /// BIFT-id as it is, for example 0x00123
    #[arg(long, value_name = "ID", value_parser = bift_id)]
    bift_id: Option<BiftId>,
    /// Logical experts, counted from 0: 3,17,200-203
    #[arg(long, value_name = "SET")]
    experts: Option<Set>,
    /// Bits of the BitString, counted from 1
    #[arg(long, value_name = "SET")]
    bits: Option<Set>,
    /// Length of the table's BitString: 64, 128, 256, 512 or 1024 bits
    #[arg(long, value_name = "BITS", default_value = "256", value_parser = length)]
    length: BitStringLength,
    /// What each frame carries: a text, or a file's content with @FILE
    #[arg(long, value_name = "TEXT|@FILE", conflicts_with = "bytes")]
    payload: Option<Payload>,
    /// Carry this many bytes: 0, 1, 2, ... 255, 0, ...
    #[arg(long, value_name = "N", default_value_t = 64)]
    bytes: usize,
    /// Frames to send; 0 goes on until Ctrl-C
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: u64,
    /// Frames per second; as many as possible without it
    #[arg(long, value_name = "PPS", value_parser = rate)]
    rate: Option<f64>,
    /// Entropy, which picks among replicas: a number or "fixed" (0) for all frames, "random", or "counting" from 0
    #[arg(long, value_name = "fixed|N|random|counting", default_value = "fixed")]
    entropy: Entropy,
    /// Time to live in the BIER header
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u8).range(1..))]
    ttl: u8,
    /// DSCP in the BIER header and, over UDP, in the IP header
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..64))]
    dscp: u8,
    /// Next protocol in the BIER header
    #[arg(long, value_name = "N", default_value_t = PROTO_EXPERT, value_parser = clap::value_parser!(u8).range(..64))]
    proto: u8,
    /// Rank of this sender: BFIR-id in the BIER header
    #[arg(long, value_name = "N", default_value_t = 0)]
    rank: u16,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Where frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Udp(SocketAddr),
    Ethernet(MacAddr),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse().map(|ip| SocketAddr::new(ip, DEFAULT_UDP_PORT));
        let udp = address.or_else(|_| text.parse()).map(Self::Udp);
        udp.or_else(|_| text.parse().map(Self::Ethernet)).map_err(|_| {
            "not an IP address, an address with a port (10.0.0.1:9000, [fd00::1]:9000) or a MAC address"
                .into()
        })
    }
}

/// Experts or bits.
#[derive(Clone, Debug)]
struct Set(Vec<u32>);

impl FromStr for Set {
    type Err = ranges::RangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        ranges::parse(text).map(Self)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Payload {
    Text(String),
    File(PathBuf),
}

impl FromStr for Payload {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.strip_prefix('@').map_or_else(|| Self::Text(text.into()), |path| Self::File(path.into())))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entropy {
    Fixed(u32),
    Random,
    Counting,
}

impl FromStr for Entropy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fixed" => Ok(Self::Fixed(0)),
            "random" => Ok(Self::Random),
            "counting" => Ok(Self::Counting),
            number => match number.parse() {
                Ok(value) if value < 1 << 20 => Ok(Self::Fixed(value)),
                _ => Err("neither fixed, random, counting nor a number below 1048576 (20 bits)".into()),
            },
        }
    }
}

fn bift_id(text: &str) -> Result<BiftId, String> {
    let value = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    value.ok().and_then(BiftId::new).ok_or_else(|| "not a number of 20 bits (0 to 0xfffff)".into())
}

fn length(text: &str) -> Result<BitStringLength, String> {
    let bits = text.parse().unwrap_or(0usize);
    let known = BitStringLength::ALL.into_iter().find(|length| length.bits() == bits);
    known.ok_or_else(|| "not 64, 128, 256, 512 or 1024".into())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|&rate: &f64| rate.is_finite() && rate > 0.0);
    rate.ok_or_else(|| "not a number above 0".into())
}

impl SendArgs {
    fn transport(&self) -> anyhow::Result<Transport> {
        match (self.to, &self.interface) {
            (Target::Udp(to), interface) => Ok(Transport::Udp { to, interface: interface.clone() }),
            (Target::Ethernet(destination), Some(interface)) => {
                Ok(Transport::Ethernet { interface: interface.clone(), destination })
            }
            (Target::Ethernet(_), None) => {
                bail!("a MAC address needs --interface: the device that frames leave by")
            }
        }
    }

    fn table(&self) -> anyhow::Result<BiftId> {
        let expert = self.table.and_then(|table| BiftId::expert(table, self.generation));
        self.bift_id.or(expert).context("neither --table nor --bift-id")
    }

    fn destinations(&self) -> anyhow::Result<Destinations<'_>> {
        match (&self.experts, &self.bits) {
            (Some(experts), _) => Ok(Destinations::Experts(&experts.0)),
            (None, Some(bits)) => Ok(Destinations::Bits(&bits.0)),
            (None, None) => bail!("neither --experts nor --bits"),
        }
    }

    fn payload(&self) -> anyhow::Result<Vec<u8>> {
        match &self.payload {
            Some(Payload::Text(text)) => Ok(text.clone().into_bytes()),
            Some(Payload::File(path)) => {
                fs::read(path).with_context(|| format!("cannot read the payload from {}", path.display()))
            }
            None => Ok((0..self.bytes).map(|at| at as u8).collect()),
        }
    }

    /// Opens, sends, sums up.
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let payload = self.payload()?;
        let settings = DispatcherSettings {
            ttl: self.ttl,
            dscp: self.dscp,
            proto: self.proto,
            ..DispatcherSettings::new(self.table()?, self.length, self.rank)
        };
        let mut dispatcher = Dispatcher::open(&self.transport()?, &settings)?;
        let stop = signal::stop_flag()?;
        let start = Instant::now();
        let mut frames = 0;
        let sent = self.send(&mut dispatcher, &payload, start, &stop, &mut frames);
        let summary = Summary {
            frames,
            seconds: start.elapsed().as_secs_f64(),
            payload: payload.len(),
            reports: dispatcher.reports(),
            segmenting: dispatcher.segmenting(),
        };
        if sent.is_ok() || frames > 0 {
            summary.print(self.json)?;
        }
        sent.map(|()| ExitCode::SUCCESS)
    }

    /// Sends until the count is reached or `stop` is set, and adds what the kernel took to `frames`.
    fn send(
        &self,
        dispatcher: &mut Dispatcher,
        payload: &[u8],
        start: Instant,
        stop: &AtomicBool,
        frames: &mut u64,
    ) -> anyhow::Result<()> {
        let destinations = self.destinations()?;
        let seed = RandomState::new();
        let mut number = 0;
        while (self.count == 0 || number < self.count) && !stop.load(Ordering::Relaxed) {
            if let Some(rate) = self.rate {
                let due = Duration::try_from_secs_f64(number as f64 / rate).unwrap_or(Duration::MAX);
                if due > start.elapsed() {
                    *frames += dispatcher.flush()? as u64;
                    wait(start, due, stop);
                }
            }
            let entropy = match self.entropy {
                Entropy::Fixed(value) => value,
                Entropy::Random => seed.hash_one(number) as u32,
                Entropy::Counting => number as u32,
            };
            *frames += dispatcher.dispatch(destinations, entropy, payload)? as u64;
            number += 1;
        }
        *frames += dispatcher.flush()? as u64;
        Ok(())
    }
}

/// What was sent.
struct Summary {
    frames: u64,
    seconds: f64,
    payload: usize,
    reports: u64,
    segmenting: bool,
}

impl Summary {
    fn print(&self, json: bool) -> anyhow::Result<()> {
        let Self { frames, seconds, payload, reports, segmenting } = *self;
        let rate = if seconds > 0.0 { frames as f64 / seconds } else { 0.0 };
        let mut out = anstream::stdout().lock();
        if json {
            let summary = serde_json::json!({
                "frames": frames, "payload_bytes": payload, "seconds": seconds, "frames_per_second": rate,
                "reports": reports, "segmenting": segmenting,
            });
            writeln!(out, "{summary}")?;
            return Ok(());
        }
        let bold = anstyle::Style::new().bold();
        write!(
            out,
            "{bold}frames sent: {frames}{bold:#}, of {payload} payload bytes each, in {seconds:.3} s"
        )?;
        if frames > 1 {
            write!(out, ": {rate:.0} frames/s")?;
        }
        writeln!(out)?;
        if reports > 0 {
            writeln!(
                out,
                "reports that frames cannot be delivered (ICMP): {reports}; is the replicator there?"
            )?;
        }
        Ok(())
    }
}

/// Sleeps until `due` after `start`, or `stop` is set: looks every tenth of a second.
fn wait(start: Instant, due: Duration, stop: &AtomicBool) {
    while let left @ 1.. = due.saturating_sub(start.elapsed()).as_nanos() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        std::thread::sleep(Duration::from_nanos(left.min(100_000_000) as u64));
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        send: SendArgs,
    }

    fn parse(line: &str) -> Result<SendArgs, String> {
        let words = std::iter::once("send").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.send).map_err(|error| error.to_string())
    }

    #[test]
    fn the_examples_of_the_help_are_understood() {
        let lines: Vec<&str> =
            EXAMPLES.lines().filter_map(|line| line.trim().strip_prefix("replicator send ")).collect();
        assert_eq!(lines.len(), 3);
        for line in lines {
            let args = parse(line).unwrap();
            args.transport().unwrap();
            args.table().unwrap();
            args.destinations().unwrap();
        }
    }

    #[test]
    fn arguments_become_frames() {
        let args = parse("--to 169.254.81.2 --table 4 --generation 9 --experts 3,200-202").unwrap();
        assert_eq!(
            args.transport().unwrap(),
            Transport::Udp { to: "169.254.81.2:8138".parse().unwrap(), interface: None }
        );
        assert_eq!(args.table().unwrap(), BiftId::expert(4, 9).unwrap());
        assert!(matches!(args.destinations().unwrap(), Destinations::Experts([3, 200, 201, 202])));
        assert_eq!((args.length, args.payload().unwrap().len()), (BitStringLength::B256, 64));

        let args = parse("--to [fd00::1]:9 --bift-id 0x00123 --bits 1 --bytes 300 --length 64").unwrap();
        assert_eq!(args.to, Target::Udp("[fd00::1]:9".parse().unwrap()));
        assert_eq!(args.table().unwrap().get(), 0x123);
        assert_eq!(args.payload().unwrap()[254..258], [254, 255, 0, 1]);

        let args = parse("--to fd00::1 --table 0 --experts 0 --payload @/no/such --entropy 7").unwrap();
        assert_eq!(
            (args.to, args.entropy),
            (Target::Udp("[fd00::1]:8138".parse().unwrap()), Entropy::Fixed(7))
        );
        assert!(args.payload().unwrap_err().to_string().contains("/no/such"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (line, said) in [
            ("--to 1.2.3.4 --table 4", "--experts"),
            ("--to 1.2.3.4 --experts 4", "--table"),
            ("--to 1.2.3.4 --table 4 --bift-id 1 --experts 4", "cannot be used with"),
            ("--to 1.2.3.4 --table 4 --experts 4 --bits 5", "cannot be used with"),
            ("--to 1.2.3.4 --bift-id 1 --generation 2 --bits 5", "cannot be used with"),
            ("--to 1.2.3.4 --table 2048 --experts 4", "2048"),
            ("--to 1.2.3 --table 4 --experts 4", "not an IP address"),
            ("--to 1.2.3.4 --bift-id 0x100000 --bits 4", "20 bits"),
            ("--to 1.2.3.4 --table 4 --experts 4-2", "ends before it starts"),
            ("--to 1.2.3.4 --table 4 --experts 4 --length 100", "not 64, 128"),
            ("--to 1.2.3.4 --table 4 --experts 4 --rate 0", "above 0"),
            ("--to 1.2.3.4 --table 4 --experts 4 --ttl 0", "ttl"),
            ("--to 1.2.3.4 --table 4 --experts 4 --entropy 1048576", "20 bits"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(said), "{line}: {error}");
        }
        let args = parse("--to 02:00:00:00:00:02 --table 4 --experts 4").unwrap();
        assert!(args.transport().unwrap_err().to_string().contains("--interface"));
    }
}

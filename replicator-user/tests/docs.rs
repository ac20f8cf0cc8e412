//! What the documentation says is what the code does, what it names is there, and its links lead somewhere.
#![expect(clippy::unwrap_used, reason = "clippy exempts tests, not the functions that they share")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use replicator_common::{
    bier::{self, BiftId, BitStringLength, HEADER_BYTES, PROTO_EXPERT},
    limits,
    outcome::{Outcome, Unit},
};
use replicator_user::{
    api::{self, types::Code},
    bift::Destination,
    config,
};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn document(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap()
}

/// Every Markdown file with its text.
fn documents() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![repository()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(".md") {
                let text = fs::read_to_string(&path).unwrap();
                found.insert(path, text);
            }
        }
    }
    assert!(found.len() >= 6, "{:?}", found.keys());
    found
}

/// What stands under a heading, up to the next one of its level.
fn section<'t>(text: &'t str, heading: &str) -> &'t str {
    let (_, rest) = text.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let level = heading.split(' ').next().unwrap();
    rest.split_once(&format!("\n{level} ")).map_or(rest, |(section, _)| section)
}

/// The cells of the first table in `text`, without its head.
fn table(text: &str) -> Vec<Vec<String>> {
    let rows =
        text.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    rows.skip(2).map(cells).collect()
}

fn number(text: &str) -> usize {
    text.replace(',', "").parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

fn unquoted(text: &str) -> &str {
    text.trim_matches('`')
}

#[test]
fn outcomes_are_those_of_the_code() {
    let text = document("docs/operations.md");
    let rows = table(section(&text, "## Outcomes"));
    let documented: Vec<_> = rows
        .iter()
        .map(|row| (number(&row[0]), unquoted(&row[1]), row[2].as_str(), row[3].as_str()))
        .collect();
    let unit = |unit| match unit {
        Unit::Frame => "frame",
        Unit::Copy => "copy",
        Unit::Bit => "bit",
    };
    let outcomes: Vec<_> = Outcome::ALL
        .iter()
        .map(|&outcome| (outcome as usize, outcome.label(), unit(outcome.unit()), outcome.text()))
        .collect();
    assert_eq!(documented, outcomes);
    assert!(rows.iter().all(|row| row.len() == 5 && !row[4].is_empty()), "each says what to do");
}

macro_rules! limits {
    ($($name:ident)*) => { [$((stringify!($name), limits::$name)),*] };
}

#[test]
fn limits_are_those_of_the_code() {
    let values = limits!(
        MAX_BITS MAX_WORDS BIFT_IDS MAX_TABLES MAX_EXPERT_TABLES TABLE_PLACES MAX_NEIGHBORS NEIGHBOR_PLACES
        MAX_MEMBERS MAX_DEVICES MAX_COUNTED_DEVICES MAX_UNCOUNTED_MEMBERS MAX_VARIANTS FBM_CHUNKS ROW_CHUNKS
        MEMBER_ENTRIES SHARE_ENTRIES FANOUT_MAPS MAX_COPIES SLOTS MAX_VLAN_TAGS MAX_FRAME_BYTES XDP_HEADROOM
        MAX_SOURCE_PREFIXES MAX_ENDPOINTS
    );
    let source = document("replicator-common/src/limits.rs");
    let declared: Vec<_> =
        source.lines().filter_map(|line| Some(line.strip_prefix("pub const ")?.split_once(':')?.0)).collect();
    assert_eq!(declared, values.map(|(name, _)| name));

    let text = document("docs/architecture.md");
    let rows = table(section(&text, "## Limits"));
    let documented: Vec<_> = rows.iter().map(|row| (unquoted(&row[0]), number(&row[1]))).collect();
    assert_eq!(documented, values);
}

#[test]
fn lengths_are_those_of_the_code() {
    let text = document("docs/wire-format.md");
    let rows = table(section(&text, "### BitString"));
    let documented: Vec<[usize; 3]> =
        rows.iter().map(|row| [number(&row[0]), number(&row[1]), number(&row[2])]).collect();
    let lengths = BitStringLength::ALL
        .map(|length| [length.code().into(), length.bits(), HEADER_BYTES + length.bytes()]);
    assert_eq!(documented, lengths);
}

#[test]
fn requests_are_those_of_the_code() {
    let text = document("docs/api.md");
    let rows = table(section(&text, "## Requests"));
    let documented: BTreeSet<_> =
        rows.iter().map(|row| (row[0].clone(), unquoted(&row[1]).to_owned())).collect();
    let description = api::document().unwrap();
    let paths = description["paths"].as_object().unwrap();
    let served: BTreeSet<_> = paths
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(move |method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    assert_eq!(documented, served);
    assert_eq!(rows.len(), served.len(), "each stands there once");
}

#[test]
fn codes_of_problems_are_those_of_the_code() {
    let text = document("docs/api.md");
    let rows = table(section(&text, "## Errors"));
    let documented: Vec<_> = rows.iter().map(|row| (number(&row[0]), unquoted(&row[1]).to_owned())).collect();
    let name = |code: &Code| serde_json::to_value(code).unwrap().as_str().unwrap().to_owned();
    let codes: Vec<_> = Code::ALL.iter().map(|code| (code.status().into(), name(code))).collect();
    assert_eq!(documented, codes);
    assert!(rows.iter().all(|row| row.len() == 4 && !row[3].is_empty()), "each says what to do");
}

/// The bytes of each block of hexadecimal numbers.
fn frames(text: &str) -> Vec<Vec<u8>> {
    let blocks = text.split("\n```hex\n").skip(1).map(|rest| rest.split("\n```").next().unwrap());
    let bytes = |line: &str| -> Vec<u8> {
        let digits = line.split('#').next().unwrap().split_whitespace();
        digits.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
    };
    blocks.map(|block| block.lines().flat_map(bytes).collect()).collect()
}

#[test]
fn the_example_on_the_wire_is_what_it_says() {
    let frames = frames(&document("docs/wire-format.md"));
    let [frame, copy] = &frames[..] else { panic!("{} frames", frames.len()) };
    let config = config::load(&repository().join("configs/gpu-node.yaml")).unwrap();
    let id = BiftId::expert(3, 1).unwrap();
    let rows = config.tables.iter().find(|table| table.bift_ids.contains(&id)).unwrap().birt.replicas();
    let host = |expert: usize| match rows[expert][..] {
        [Destination::Local] => "local".to_owned(),
        [Destination::Neighbor(id)] => config.neighbor(id).unwrap().name.clone(),
        ref replicas => panic!("{replicas:?}"),
    };
    assert_eq!([3, 8, 63].map(host), ["local", "node2", "node8"]);

    let expected = [
        (frame, &[4, 9, 64][..], 64, [[169, 254, 81, 1], [169, 254, 81, 2]]),
        (copy, &[9], 63, [[10, 0, 0, 1], [10, 0, 0, 2]]),
    ];
    for (bytes, bits, ttl, addresses) in expected {
        let (ip, udp) = (&bytes[14..34], &bytes[34..42]);
        let word = |bytes: &[u8], at| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        assert_eq!((word(bytes, 12), word(ip, 2)), (0x0800, bytes.len() - 14));
        assert_eq!(addresses.concat(), ip[12..]);
        let sum: usize = (0..10).map(|at| word(ip, 2 * at)).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "header checksum");
        assert_eq!((word(udp, 2), word(udp, 4)), (8138, bytes.len() - 34));
        let (header, bit_string, payload) = bier::split(&bytes[42..]).unwrap();
        assert_eq!((header.bift_id(), header.ttl(), header.proto()), (id, ttl, PROTO_EXPERT));
        assert!(bit_string.iter().eq(bits.iter().copied()));
        assert_eq!(payload, b"hello");
    }
    assert_eq!(copy[..12], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    assert_eq!(copy[36..38], config.udp_port.to_be_bytes());
    let unchanged = |bytes: &[u8]| [&bytes[12..24], &bytes[34..36], &bytes[42..45], &bytes[46..54]].concat();
    assert_eq!(unchanged(frame), unchanged(copy));
}

/// The lines of `text` outside fenced blocks, and each line within with its block's language.
fn lines(text: &str) -> Vec<(Option<&str>, &str)> {
    let mut block = None;
    let mut lines = Vec::new();
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), block) {
            (Some(language), None) => block = Some(language),
            (Some(_), Some(_)) => block = None,
            (None, _) => lines.push((block, line)),
        }
    }
    assert_eq!(block, None, "a block does not end");
    lines
}

/// What GitHub makes of a heading to link to it.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = lines(text).into_iter().filter(|(block, line)| block.is_none() && line.starts_with('#'));
    let anchor = |line: &str| {
        let text = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        text.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    headings.map(|(_, line)| anchor(line)).collect()
}

#[test]
fn links_lead_somewhere() {
    let documents = documents();
    let mut checked = 0;
    for (path, text) in &documents {
        let prose = lines(text).into_iter().filter(|(block, _)| block.is_none());
        let targets =
            prose.flat_map(|(_, line)| line.split("](").skip(1)).map(|rest| rest.split(')').next().unwrap());
        for target in targets.filter(|target| !target.starts_with("http")) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let there = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let found = there.canonicalize();
            let found = found.unwrap_or_else(|_| panic!("{}: {target} is not there", path.display()));
            if !anchor.is_empty() {
                let anchors = anchors(&documents[&found]);
                assert!(anchors.contains(anchor), "{}: {target} has no such heading", path.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 30, "{checked} links");
}

/// Every command that the documents name, as words, with the file that does.
fn commands() -> Vec<(PathBuf, Vec<String>)> {
    let mut commands = Vec::new();
    for (path, text) in documents() {
        let lines = lines(&text);
        let prose: Vec<_> =
            lines.iter().filter(|(block, _)| block.is_none()).map(|(_, line)| *line).collect();
        let prose = prose.join("\n");
        let spans: Vec<_> = prose.split('`').collect();
        assert!(spans.len() % 2 == 1, "{}: a backtick is alone", path.display());
        let scripts = lines.iter().filter_map(|&(block, line)| match block {
            Some("sh" | "console") => Some(line),
            Some("ini") => Some(line.split_once('=')?.1),
            _ => None,
        });
        for candidate in spans.iter().copied().skip(1).step_by(2).chain(scripts) {
            let command = candidate.split(" # ").next().unwrap();
            let words =
                command.split_whitespace().skip_while(|word| *word == "sudo" || word.contains("_LOG="));
            commands.push((path.clone(), words.map(str::to_owned).collect()));
        }
    }
    commands
}

fn replicator(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_replicator")).args(arguments).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn commands_of_replicator_are_there_with_their_options() {
    let mut named = BTreeSet::new();
    for (path, words) in commands() {
        let [program, command, arguments @ ..] = &words[..] else { continue };
        if program.rsplit('/').next() != Some("replicator") || program.starts_with('.') {
            continue;
        }
        let (mut found, mut help) = replicator(&[command, "--help"]);
        if help.contains("\nCommands:\n")
            && let Some(inner) = arguments.first()
        {
            (found, help) = replicator(&[command, inner, "--help"]);
        }
        assert!(found, "{}: no command {words:?}", path.display());
        let known: BTreeSet<_> = help.split(|c: char| !c.is_alphanumeric() && c != '-').collect();
        for option in arguments.iter().filter(|word| word.starts_with("--")) {
            assert!(known.contains(&option[..]), "{}: no option {option} in {words:?}", path.display());
        }
        named.insert(command.clone());
    }
    let (_, help) = replicator(&["--help"]);
    let offered = section(&help, "Commands:").lines().take_while(|line| !line.is_empty());
    // The wrapped lines of a description are indented further.
    let offered = offered.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let offered: BTreeSet<_> =
        offered.filter(|name| !name.is_empty() && *name != "help").map(str::to_owned).collect();
    assert_eq!(named, offered, "every command is documented");
}

#[test]
fn commands_of_xtask_are_there() {
    let source = document("xtask/src/main.rs");
    let (_, commands_of) = source.split_once("\nenum Command {\n").unwrap();
    let (variants, _) = commands_of.split_once("\n}\n").unwrap();
    let variants = variants.lines().filter_map(|line| line.strip_prefix("    "));
    let variants = variants.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
    let offered: BTreeSet<_> =
        variants.map(|line| line.split([' ', '(', ',']).next().unwrap().to_lowercase()).collect();
    let mut named = BTreeSet::new();
    for (path, words) in commands() {
        if let [cargo, xtask, command, ..] = &words[..]
            && [cargo, xtask] == ["cargo", "xtask"]
            && command != "--help"
        {
            assert!(offered.contains(command), "{}: no command {words:?}", path.display());
            named.insert(command.clone());
        }
    }
    assert_eq!(named, offered, "every command is documented");
}

/// The front page's example. It is compiled here and not run: it wants an origin veth.
fn example() -> Result<(), Box<dyn std::error::Error>> {
    // README.md
    use replicator_common::bier::{BiftId, BitStringLength};
    use replicator_user::client::{Destinations, Dispatcher, DispatcherSettings, Transport};

    let transport = Transport::Udp { to: "169.254.81.2:8138".parse()?, interface: None };
    let table = BiftId::expert(3, 1).ok_or("no such table")?; // table 3, generation 1
    let settings = DispatcherSettings::new(table, BitStringLength::B64, 0); // rank 0
    let mut dispatcher = Dispatcher::open(&transport, &settings)?;
    dispatcher.dispatch(Destinations::Experts(&[3, 8, 63]), 0, b"hidden state")?;
    dispatcher.flush()?;
    // The end.
    Ok(())
}

#[test]
fn the_example_of_the_front_page_compiles() {
    let _: fn() -> _ = example;
    let source = include_str!("docs.rs");
    let (_, rest) = source.split_once("    // README.md\n").unwrap();
    let compiled: Vec<_> = rest.lines().map(str::trim).take_while(|line| *line != "// The end.").collect();
    let text = document("README.md");
    let shown: Vec<_> = lines(&text)
        .into_iter()
        .filter(|(block, _)| *block == Some("rust"))
        .map(|(_, line)| line.trim())
        .collect();
    assert_eq!(shown, compiled);
}

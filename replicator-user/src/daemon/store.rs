//! Where the models outlive the daemon: a folder with a file for each. A file is replaced at once, so whenever the
//! daemon is killed the old one or the new one is there, and it is written to the disk within a second.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    string::FromUtf8Error,
};

use ring::digest;
use tracing::{info, warn};

use super::{replace::replace, status};
use crate::{
    map,
    models::{Model, state::StateError},
};

/// Folder of the state, where neither the configuration nor the service manager (STATE_DIRECTORY) names another.
const STATE_DIRECTORY: &str = "/var/lib/replicator";

const SUFFIX: &str = "json";

/// What a file that cannot be read is called from then on.
const SET_ASIDE: &str = "damaged";

/// Bytes of a file's name that the model's name may take: file systems allow 255.
const MAX_NAME: usize = 180;

/// Bytes of a file: a map and what was before it, each as large as a document may be, with their numbers.
const MAX_BYTES: u64 = 3 * map::MAX_BYTES as u64;

/// The state of one replicator.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    /// Files that are not on the disk yet.
    unsynced: BTreeSet<PathBuf>,
}

/// Why a model is not kept.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot keep the map: {path}: {source}; give the daemon a folder it can write, by `state-path` or STATE_DIRECTORY"
)]
pub(super) struct StoreError {
    path: PathBuf,
    source: io::Error,
}

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("not UTF-8 text")]
    Text(#[from] FromUtf8Error),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("it is the file of another model, `{0}`")]
    Name(String),
}

/// The text of a file. Whoever may write to the folder may put anything there: what is no plain file, or larger than any
/// state, is not read.
fn text(path: &Path) -> Result<String, Unreadable> {
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(io::Error::other(format!("it is no plain file of at most {MAX_BYTES} bytes")).into());
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8(bytes)?)
}

/// Files on their way to the disk.
#[derive(Debug)]
pub(super) struct Unsynced {
    folder: PathBuf,
    files: BTreeSet<PathBuf>,
}

impl Unsynced {
    /// Has the disk keep them, which may take a while.
    pub(super) fn sync(self) {
        let sync = |path: &PathBuf| match fs::File::open(path) {
            // Its model was deleted meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            file => file?.sync_all(),
        };
        if self.files.is_empty() {
            return;
        }
        if let Err(error) = self.files.iter().chain([&self.folder]).try_for_each(sync) {
            warn!("the newest maps may be lost in a power cut: {}: {error}", self.folder.display());
        }
    }
}

impl Store {
    /// The folder of the replicator with this pin path. There may be several on a host.
    pub(super) fn new(configured: Option<&Path>, pin_path: &Path) -> Self {
        let root = configured.map(PathBuf::from);
        let root = root.or_else(|| env::var_os("STATE_DIRECTORY").map(PathBuf::from));
        let root = root.unwrap_or_else(|| STATE_DIRECTORY.into());
        Self { folder: root.join(status::instance(pin_path)), unsynced: BTreeSet::new() }
    }

    /// The models that were kept. A file that is no model is set aside and named in the log.
    pub(super) fn load(&self) -> Vec<Model> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                warn!("the maps of before are not known: {}: {error}", self.folder.display());
                return Vec::new();
            }
        };
        let paths = entries.flatten().map(|entry| entry.path());
        let mut paths: Vec<_> =
            paths.filter(|path| path.extension().is_some_and(|suffix| suffix == SUFFIX)).collect();
        paths.sort();
        paths.into_iter().filter_map(|path| self.read(&path)).collect()
    }

    fn read(&self, path: &Path) -> Option<Model> {
        let model = text(path).and_then(|text| {
            let model = Model::from_state(&text)?;
            let name = model.map().model();
            // A copy of a file under another name would be a second model of that name.
            if self.path(name) == path { Ok(model) } else { Err(Unreadable::Name(name.to_owned())) }
        });
        match model {
            Ok(model) => {
                info!("found the map of {}, epoch {}", model.map().model(), model.map().epoch());
                Some(model)
            }
            // It may be whole, and another build or another time may read it.
            Err(error @ (Unreadable::Read(_) | Unreadable::State(StateError::Version(_)))) => {
                warn!("the map in {} is not taken: {error}", path.display());
                None
            }
            Err(error) => {
                let aside = path.with_extension(SET_ASIDE);
                let moved = fs::rename(path, &aside);
                let now = if moved.is_ok() { &aside } else { path };
                warn!(
                    "the map in {} is not taken: {error}; the file is set aside as {}",
                    path.display(),
                    now.display()
                );
                None
            }
        }
    }

    /// Keeps a model in place of what was kept of it.
    pub(super) fn save(&mut self, model: &Model) -> Result<(), StoreError> {
        let path = self.path(model.map().model());
        replace(&path, model.to_state().as_bytes())
            .map_err(|source| StoreError { path: path.clone(), source })?;
        self.unsynced.insert(path);
        Ok(())
    }

    /// Keeps a model no more.
    pub(super) fn remove(&mut self, model: &str) -> Result<(), StoreError> {
        let path = self.path(model);
        self.unsynced.insert(path.clone());
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError { path, source }),
            _ => Ok(()),
        }
    }

    /// Whether there are files that the disk may not keep yet.
    pub(super) fn is_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// The files that the disk may not keep yet; whoever has them sees to it.
    pub(super) fn unsynced(&mut self) -> Unsynced {
        Unsynced { folder: self.folder.clone(), files: std::mem::take(&mut self.unsynced) }
    }

    /// The file of a model: its name, with everything but the plainest characters as `%XX`. One that is too long for a
    /// file's name is cut, and told from others by its digest.
    fn path(&self, model: &str) -> PathBuf {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        let part = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
        let mut name: String = model.bytes().map(part).collect();
        if name.len() > MAX_NAME {
            // All of it is ASCII.
            name.truncate(MAX_NAME);
            let digest = digest::digest(&digest::SHA256, model.as_bytes());
            name.push('-');
            name.extend(digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")));
        }
        self.folder.join(format!("{name}.{SUFFIX}"))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::{map::ExpertMap, models::Models};

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("replicator-store-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }

        fn store(&self) -> Store {
            Store::new(Some(&self.0), "/sys/fs/bpf/replicator".as_ref())
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn model(name: &str, epoch: u64) -> Model {
        let name = serde_json::Value::from(name);
        let map = ExpertMap::parse(
            format!(
                r#"{{"version":1,"model":{name},"epoch":{epoch},"logical_experts":1,
                "ranks":[{{"rank":0,"node":"a"}}],"layers":{{"0":{{"physical_to_logical_map":[0]}}}}}}"#
            )
            .as_bytes(),
        );
        let mut models = Models::new(BTreeMap::new(), Duration::ZERO);
        let plan = models.plan(map.unwrap(), Duration::ZERO).unwrap();
        let model = plan.model.clone();
        models.commit(plan, Duration::ZERO);
        model
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let folder = Folder::new("saved");
        let names =
            ["deepseek-ai/DeepSeek V3", "../../etc/passwd", "é", &"é".repeat(63), &"è".repeat(63), "."];
        let mut store = folder.store();
        for name in names {
            store.save(&model(name, 1)).unwrap();
            store.save(&model(name, 2)).unwrap();
        }
        assert!(store.is_unsynced());
        store.unsynced().sync();
        assert!(!store.is_unsynced());
        let mut loaded = folder.store().load();
        let mut expected: Vec<_> = names.map(|name| model(name, 2)).into();
        loaded.sort_by_key(|model| model.map().model().to_owned());
        expected.sort_by_key(|model| model.map().model().to_owned());
        assert_eq!(loaded, expected);
        let files = fs::read_dir(folder.0.join("sys-fs-bpf-replicator")).unwrap();
        assert_eq!(files.count(), names.len(), "nothing but the files, all within the folder");

        names.iter().for_each(|name| store.remove(name).unwrap());
        store.remove("never there").unwrap();
        assert_eq!(folder.store().load(), []);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_the_others_are_loaded() {
        let folder = Folder::new("damaged");
        let mut store = folder.store();
        ["a", "b", "c"].into_iter().for_each(|name| store.save(&model(name, 1)).unwrap());
        let inside = folder.0.join("sys-fs-bpf-replicator");
        fs::write(inside.join("a.json"), &fs::read(inside.join("a.json")).unwrap()[..99]).unwrap();
        fs::copy(inside.join("b.json"), inside.join("d.json")).unwrap();
        fs::write(inside.join("e.json"), [0xff, 0xfe]).unwrap();
        std::os::unix::fs::symlink("/dev/zero", inside.join("f.json")).unwrap();
        fs::create_dir(inside.join("g.json")).unwrap();
        let newer = fs::read_to_string(inside.join("b.json")).unwrap();
        let state = newer.split_once("\"state\":").unwrap().1.trim_end().strip_suffix('}').unwrap();
        let state = state.replacen("\"version\":1", "\"version\":2", 1);
        let sum = crc32fast::hash(state.as_bytes());
        let newer = format!("{{\"checksum\":\"crc32:{sum:08x}\",\"state\":{state}}}");
        fs::write(inside.join("h.json"), newer).unwrap();
        // What a daemon that was killed while it wrote left.
        fs::write(inside.join("c.new"), "half").unwrap();
        assert_eq!(folder.store().load(), [model("b", 1), model("c", 1)]);
        for name in ["a", "d", "e"] {
            assert!(inside.join(format!("{name}.damaged")).exists(), "{name}");
            assert!(!inside.join(format!("{name}.json")).exists(), "{name}");
        }
        for name in ["f", "g", "h"] {
            let there = fs::symlink_metadata(inside.join(format!("{name}.json")));
            assert!(there.is_ok(), "{name}: not ours to judge, or another version's");
        }
    }

    #[test]
    fn what_cannot_be_saved_is_told_and_leaves_the_old_one() {
        let folder = Folder::new("refused");
        fs::write(&folder.0, "a file where a folder should be").unwrap();
        let error = folder.store().save(&model("m", 1)).unwrap_err().to_string();
        assert!(error.contains(&*folder.0.to_string_lossy()) && error.contains("state-path"), "{error}");
        fs::remove_file(&folder.0).unwrap();

        let mut store = folder.store();
        store.save(&model("m", 1)).unwrap();
        // In the way of the next one.
        fs::create_dir(folder.0.join("sys-fs-bpf-replicator/m.new")).unwrap();
        store.save(&model("m", 2)).unwrap_err();
        assert_eq!(folder.store().load(), [model("m", 1)]);
    }
}

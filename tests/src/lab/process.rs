//! Children: they end with this process, and what they print is kept.

use std::{
    collections::BTreeSet,
    fmt,
    io::Read,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// How often a child that is waited for is looked at.
const POLL: Duration = Duration::from_millis(2);

/// Time that a command which ends by itself may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// Children not yet reaped.
static CHILDREN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

type Job = (Command, mpsc::SyncSender<std::io::Result<Child>>);

/// The thread that starts every child. The kernel sends a child its parent-death signal when the *thread* that started
/// it ends (prctl(2), PR_SET_PDEATHSIG), so this one lives as long as the process.
static KEEPER: LazyLock<std::io::Result<mpsc::Sender<Job>>> = LazyLock::new(|| {
    let (jobs, queue) = mpsc::channel::<Job>();
    thread::Builder::new().name("keeper".to_owned()).spawn(move || {
        for (mut command, reply) in queue {
            let mut children = lock(&CHILDREN);
            let child = command.spawn();
            if let Ok(child) = &child {
                children.insert(child.id().cast_signed());
            }
            drop(children);
            // Whoever asked waits for the answer.
            let _ = reply.send(child);
        }
    })?;
    Ok(jobs)
});

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills and reaps every child. No other starts while the guard is held.
pub(super) fn end_all() -> MutexGuard<'static, BTreeSet<i32>> {
    let mut children = lock(&CHILDREN);
    let pids: Vec<Pid> = children.iter().filter_map(|&child| Pid::from_raw(child)).collect();
    for &pid in &pids {
        // One that ended by itself is a zombie until it is reaped below.
        let _ = kill_process(pid, Signal::KILL);
    }
    for &pid in &pids {
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
    children.clear();
    children
}

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    stdout: Capture,
    stderr: Capture,
}

/// What a child printed, and how it ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Process {
    /// Starts `command`; its standard output and error are captured.
    pub(super) fn start(mut command: Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let keeper = KEEPER.as_ref().map_err(|error| anyhow!("cannot start a thread: {error}"))?;
        let (reply, answer) = mpsc::sync_channel(1);
        keeper.send((command, reply)).context("the thread that starts children is gone")?;
        let mut child = answer
            .recv()
            .context("the thread that starts children is gone")?
            .with_context(|| format!("cannot start {name}"))?;
        let (stdout, stderr) = (Capture::start(child.stdout.take())?, Capture::start(child.stderr.take())?);
        Ok(Self { name, child, status: None, stdout, stderr })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far: standard error, then standard output.
    pub fn printed(&self) -> String {
        format!("{}{}", self.stderr, self.stdout)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// Where the kernel does not know the child.
    pub fn poll(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            let mut children = lock(&CHILDREN);
            self.status = self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))?;
            if self.status.is_some() {
                children.remove(&self.id().cast_signed());
            }
        }
        Ok(self.status)
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// Where it does not within `timeout`; it goes on running then.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.poll()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} still runs after {timeout:?}; it printed:\n{}", self.name, self.printed());
            }
            thread::sleep(POLL);
        }
    }

    /// Sends a signal, unless it has ended.
    ///
    /// # Errors
    /// Where the kernel refuses it.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.poll()?.is_none()
            && let Some(pid) = Pid::from_raw(self.id().cast_signed())
        {
            kill_process(pid, signal).with_context(|| format!("cannot send {signal:?} to {}", self.name))?;
        }
        Ok(())
    }

    /// Waits until a command that ends by itself has, and takes what it printed.
    ///
    /// # Errors
    /// Where it runs for more than a minute.
    pub fn finish(mut self) -> Result<Finished> {
        let status = self.wait(COMMAND_TIMEOUT)?;
        Ok(Finished { status, stdout: self.stdout.take(), stderr: self.stderr.take() })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.poll() {
            // It ends one way or the other; a child that cannot be killed ends with this process.
            let _ = self.child.kill();
            let _ = self.wait(COMMAND_TIMEOUT);
        }
        if thread::panicking() {
            eprintln!("--- {} ({:?}) printed:\n{}---", self.name, self.status, self.printed());
        }
    }
}

/// Reads a child's output into memory.
#[derive(Debug)]
struct Capture {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Capture {
    fn start(stream: Option<impl Read + Send + 'static>) -> Result<Self> {
        let bytes = Arc::<Mutex<Vec<u8>>>::default();
        let reader = stream.map(|mut stream| {
            let bytes = Arc::clone(&bytes);
            thread::Builder::new().name("capture".to_owned()).spawn(move || {
                let mut chunk = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut chunk) {
                    lock(&bytes).extend_from_slice(&chunk[..count]);
                }
            })
        });
        Ok(Self { bytes, reader: reader.transpose().context("cannot start a thread")? })
    }

    /// Everything, once the child has ended.
    fn take(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            // The reader's only way to fail is to panic, and then there is what it read before.
            let _ = reader.join();
        }
        self.to_string()
    }
}

impl fmt::Display for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&lock(&self.bytes)))
    }
}

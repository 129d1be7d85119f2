//! The node as its operator runs it: the binary, with an environment.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use uuid::Uuid;

use super::ports;

pub struct NodeProcess {
    child: Option<Child>,
    folder: TempDir,
    settings: BTreeMap<String, String>,
    binary: PathBuf,
    subcommand: &'static str,
    user: Option<u32>,
    pub port: u16,
    pub api_key: Uuid,
}

/// The Xray that all tests run.
pub fn xray_binary() -> PathBuf {
    match std::env::var_os("XRAY_EXECUTABLE_PATH") {
        Some(path) => path.into(),
        None => panic!(
            "XRAY_EXECUTABLE_PATH is not set: run `make test`, which builds an xray and names it"
        ),
    }
}

/// The field `bytes` of a line of the log.
pub fn bytes_of(line: &str) -> u64 {
    let (_, bytes) = line.rsplit_once("bytes=").unwrap();
    let digits = bytes.split_whitespace().next().unwrap();
    digits.parse().unwrap()
}

pub fn xray_version() -> (u32, u32, u32) {
    let output = Command::new(xray_binary()).arg("version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut numbers = text
        .split_whitespace()
        .nth(1)
        .unwrap()
        .split('.')
        .map(|part| part.parse().unwrap());
    (
        numbers.next().unwrap(),
        numbers.next().unwrap(),
        numbers.next().unwrap(),
    )
}

impl NodeProcess {
    pub fn start(binary: impl Into<PathBuf>) -> Self {
        Self::start_with(binary, &[])
    }

    /// Starts a node whose settings differ in some variables.
    pub fn start_with(binary: impl Into<PathBuf>, settings: &[(&str, &str)]) -> Self {
        let mut node = Self::prepare(binary, settings);
        node.launch();
        node
    }

    /// A node that is not started yet.
    pub fn prepare(binary: impl Into<PathBuf>, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("rn").tempdir().unwrap();
        let (port, api_key) = (ports::free(), Uuid::new_v4());
        let path = |name: &str| folder.path().join(name).display().to_string();
        let mut all = BTreeMap::from(
            [
                ("NODE_HOST", "127.0.0.1".to_owned()),
                ("SERVICE_PORT", port.to_string()),
                ("API_PORT", "0".to_owned()),
                ("API_KEY", api_key.to_string()),
                ("STATE_DIR", path("state")),
                ("RUNTIME_DIR", path("run")),
                ("XRAY_EXECUTABLE_PATH", xray_binary().display().to_string()),
                ("LOG_LEVEL", "debug".to_owned()),
                // Most tests want to see what a Stop does.
                ("STOP_GRACE", "0".to_owned()),
                // One port for all of them would be had by one.
                ("METRICS_LISTEN", "off".to_owned()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        for (name, value) in settings {
            all.insert((*name).to_owned(), (*value).to_owned());
        }
        Self {
            child: None,
            folder,
            settings: all,
            binary: binary.into(),
            subcommand: "run",
            user: None,
            port,
            api_key,
        }
    }

    /// The next launch is of this program.
    pub fn be(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// The next launch is as this user.
    pub fn as_user(&mut self, user: u32) {
        self.user = Some(user);
    }

    /// The next launch is one in a container.
    pub fn as_process_1(&mut self) {
        self.subcommand = "init";
    }

    /// Changes a setting for the next launch.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.insert(name.to_owned(), value.to_owned());
    }

    /// Leaves a setting out at the next launch.
    pub fn unset(&mut self, name: &str) {
        self.settings.remove(name);
    }

    /// Starts the process and waits until it listens, for panels and for its operator.
    pub fn launch(&mut self) {
        self.spawn();
        let there = |node: &Self| {
            let control = Path::new(&node.settings["RUNTIME_DIR"]).join("control.sock");
            std::net::TcpStream::connect(("127.0.0.1", node.port)).is_ok()
                && std::os::unix::net::UnixStream::connect(control).is_ok()
        };
        self.wait_until(there);
    }

    fn spawn(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap();
        let mut command = Command::new(&self.binary);
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        let child = command
            .arg(self.subcommand)
            .env_clear()
            .envs(&self.settings)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone().unwrap()))
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// The same for a program that goes into a network of its own first.
    pub fn launch_inside(&mut self) {
        self.spawn();
        self.wait_until(|node| node.log().contains("serving panels"));
    }

    fn wait_until(&mut self, is_there: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_there(self) {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "the node did not start: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("state/certs/ssl_cert.pem")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("node.log")
    }

    /// A place for the core's log, shown when a test fails.
    pub fn core_log_path(&self) -> PathBuf {
        self.folder.path().join("core.log")
    }

    /// What the node said of itself.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// How many bytes of reports nobody can know of whether they arrived.
    pub fn unsure(&self) -> u64 {
        let log = self.log();
        let unsure = log
            .lines()
            .filter(|line| line.contains("nobody can know whether"));
        unsure.map(bytes_of).sum()
    }

    /// The processes that the node started and that are alive.
    pub fn cores(&self) -> Vec<i32> {
        let mark = format!(
            "RAYNODE_RUNTIME_DIR={}",
            self.folder
                .path()
                .canonicalize()
                .unwrap()
                .join("run")
                .display()
        );
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment
                    .split(|byte| *byte == 0)
                    .any(|variable| variable == mark.as_bytes())
            })
            .collect()
    }

    /// The one core that serves; beside it there may only be those that drain.
    pub fn core(&self) -> i32 {
        let draining = self.draining();
        let mut cores = self.cores();
        cores.retain(|core| !draining.contains(core));
        match cores.as_slice() {
            [core] => *core,
            cores => panic!(
                "not one core but {cores:?}, beside {draining:?}: {}",
                self.log()
            ),
        }
    }

    /// The cores that keep the connections that they have, by the node's journal.
    pub fn draining(&self) -> Vec<i32> {
        let Ok(text) = std::fs::read(self.folder.path().join("run/handover.json")) else {
            return Vec::new();
        };
        let journal: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let draining = journal["draining"].as_array().unwrap().iter();
        draining
            .map(|core| i32::try_from(core["record"]["process"]["pid"].as_i64().unwrap()).unwrap())
            .collect()
    }

    /// The API of the core that the node's record names.
    pub fn core_api(&self) -> raynode::xray::client::Client {
        let record = std::fs::read(self.folder.path().join("run/core.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        raynode::xray::client::Client::new(record["socket"].as_str().unwrap().into())
    }

    /// Who the core serves on an inbound, by its own word.
    pub async fn served_on(&self, tag: &str) -> std::collections::BTreeSet<String> {
        let users = self.core_api().users(tag).await.unwrap();
        users.into_iter().map(|user| user.email).collect()
    }

    /// What another command of the program says with this node's settings.
    pub fn command(&self, arguments: &[&str]) -> std::process::Output {
        self.prepared(arguments).output().unwrap()
    }

    /// A command of the operator's that is not given yet.
    pub fn prepared(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .env_clear()
            .envs(&self.settings)
            .current_dir(self.folder.path());
        command
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Asks the node to stop and waits for its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.stop_asked()
    }

    /// Waits for the end of a node that was asked to stop.
    pub fn stop_asked(&mut self) -> ExitStatus {
        self.wait(Duration::from_secs(20))
            .unwrap_or_else(|| panic!("the node does not stop: {}", self.log()))
    }

    /// Kills the node, which leaves its core behind.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait(Duration::from_secs(5)).unwrap();
    }

    fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.child.as_mut()?.try_wait().unwrap() {
                self.child = None;
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// Resident memory in KiB.
    pub fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.signal(Signal::SIGTERM);
            if self.wait(Duration::from_secs(20)).is_none() {
                let child = self.child.as_mut().unwrap();
                drop(child.kill());
                drop(child.wait());
            }
        }
        for core in self.cores() {
            kill(Pid::from_raw(core), Signal::SIGKILL).ok();
        }
        if std::thread::panicking() {
            let core = std::fs::read_to_string(self.core_log_path()).unwrap_or_default();
            eprintln!("--- the core's log:\n{core}");
            let log = self.log();
            let start = log.len().saturating_sub(6000);
            eprintln!(
                "--- the node's log:\n{}\n---",
                log.get(start..).unwrap_or(&log)
            );
        }
    }
}

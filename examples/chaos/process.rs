//! Processes of this very program in another role.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::Result;

const STARTS_WITHIN: Duration = Duration::from_secs(20);

/// Ends this process when the one that started it is gone: its standard input ends then.
pub(crate) fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(1);
    });
}

/// A process that listens. It is killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    pub(crate) pid: u32,
    pub(crate) address: SocketAddr,
}

impl Process {
    /// Starts one, and waits until it says where it listens. What it complains of goes to `log`.
    pub(crate) async fn start(args: &[impl AsRef<OsStr>], log: &Path) -> Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(args)
            .env("AWS_REGION", "eu-central-1")
            .env("AWS_ACCESS_KEY_ID", "chaos")
            .env("AWS_SECRET_ACCESS_KEY", "chaos")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("NO_PROXY", "127.0.0.1")
            .env("RUST_LOG", "error,dynoxide=off")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().ok_or("a process ended at once")?;
        let stdout = child.stdout.take().ok_or("a process has no output")?;
        let mut line = String::new();
        timeout(STARTS_WITHIN, BufReader::new(stdout).read_line(&mut line)).await??;
        let address = line.trim().strip_prefix("listening on http://");
        let address = address.ok_or("a process ended before it listened; see its log")?;
        Ok(Self {
            pid,
            address: address.parse()?,
            child,
        })
    }

    /// SIGKILL.
    pub(crate) async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// SIGSTOP.
    pub(crate) async fn stop(&self) -> Result<()> {
        self.signal("STOP").await
    }

    /// SIGCONT.
    pub(crate) async fn go_on(&self) -> Result<()> {
        self.signal("CONT").await
    }

    /// By the shell, for the standard library sends no signal but one.
    async fn signal(&self, name: &str) -> Result<()> {
        let sent = Command::new("sh")
            .args(["-c", "kill -$0 $1", name, &self.pid.to_string()])
            .status()
            .await?;
        match sent.success() {
            true => Ok(()),
            false => Err(format!("SIG{name} could not be sent to {}", self.pid).into()),
        }
    }
}

//! A real Mosquitto, with the configuration that is in `deploy/`.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::sys::signal::Signal;
use tokio::net::TcpStream;

use crate::{
    certificates::Authority,
    gateway::{free_address, wait},
};

const PASSWORD: &str = "a password of a test";

/// A broker with TLS, users and a disk; it dies with the test.
pub struct Broker {
    pub address: SocketAddr,
    program: PathBuf,
    child: Option<Child>,
    directory: tempfile::TempDir,
}

impl Broker {
    /// `None`, and a printed line, where Mosquitto is not installed.
    pub async fn start() -> Option<Self> {
        let places = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/sbin"];
        let Some(program) = places.iter().map(|place| Path::new(place).join("mosquitto")).find(|file| file.exists())
        else {
            eprintln!("skipped: mosquitto is not installed (apt install mosquitto)");
            return None;
        };
        let (address, directory) = (free_address(), tempfile::tempdir().unwrap());
        let broker = Self { address, program, child: None, directory };
        let authority = Authority::new("broker");
        let server = authority.certify("broker", "127.0.0.1");
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let mut config = fs::read_to_string(deploy.join("mosquitto.conf")).unwrap();
        for (what, place) in [
            ("listener 8883", format!("listener {} 127.0.0.1", address.port())),
            ("/etc/mosquitto/certs/", format!("{}/", broker.directory.path().display())),
            ("/etc/mosquitto/", format!("{}/", broker.directory.path().display())),
            ("/var/lib/mosquitto/", format!("{}/", broker.directory.path().display())),
        ] {
            assert!(config.contains(what), "{what}");
            config = config.replace(what, &place);
        }
        // Started by root it would become a user who may not come here; started by others this says nothing.
        config += "\nuser root\n";
        for (name, text) in [
            ("mosquitto.conf", config),
            ("gemba.acl", fs::read_to_string(deploy.join("mosquitto.acl")).unwrap()),
            ("server.crt", server.pem),
            ("server.key", server.key_pem),
            ("ca.crt", authority.pem),
            ("password", PASSWORD.to_owned()),
        ] {
            fs::write(broker.file(name), text).unwrap();
        }
        let mut broker = broker;
        for user in ["press-line", "gemba-edge", "gemba-cloud"] {
            broker.add_user(user);
        }
        broker.restart().await;
        Some(broker)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts it; kills it before if it runs.
    pub async fn restart(&mut self) {
        self.kill();
        let log = fs::File::options().create(true).append(true).open(self.file("log")).unwrap();
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(self.file("mosquitto.conf")).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        let deadline = tokio::time::Duration::from_secs(30);
        let listening = async {
            while TcpStream::connect(self.address).await.is_err() {
                tokio::time::sleep(tokio::time::Duration::from_millis(20)).await;
            }
        };
        assert!(tokio::time::timeout(deadline, listening).await.is_ok(), "mosquitto listens\n{}", self.log());
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).unwrap();
        }
    }

    /// Has it write to the disk what it holds; it does so by itself from time to time only.
    pub async fn save(&self) {
        let database = self.file("mosquitto.db");
        let written = || fs::metadata(&database).ok().map(|file| (file.ino(), file.mtime(), file.mtime_nsec()));
        let before = written();
        self.signal(Signal::SIGUSR1);
        wait("mosquitto's file", || written().filter(|now| Some(*now) != before)).await;
    }

    /// Adds a user; the broker takes it in at once.
    pub fn add_user(&self, name: &str) {
        let file = self.file("gemba.passwd");
        let mut command = Command::new("mosquitto_passwd");
        if !file.exists() {
            command.arg("-c");
        }
        let output = command.arg("-b").arg(&file).args([name, PASSWORD]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.signal(Signal::SIGHUP);
    }

    pub fn url(&self) -> String {
        format!("mqtts://{}", self.address)
    }

    /// A `[mqtt]` section of this user.
    pub fn client(&self, user: &str) -> String {
        format!("url = \"{}\"\nca_file = \"{}\"\n{}", self.url(), self.file("ca.crt").display(), self.login(user))
    }

    pub fn login(&self, user: &str) -> String {
        format!("username = \"{user}\"\npassword_file = \"{}\"\n", self.file("password").display())
    }

    /// Arguments of `gemba-edge replay`.
    pub fn publisher(&self) -> Vec<String> {
        let (ca, password) = (self.file("ca.crt"), self.file("password"));
        let [ca, password] = [ca, password].map(|file| file.display().to_string());
        let args = ["--url", &self.url(), "--ca-file", &ca, "--username", "press-line", "--password-file", &password];
        args.map(str::to_owned).to_vec()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

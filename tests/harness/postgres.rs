//! A throw-away PostgreSQL with the shop in it.
//!
//! `initdb` and loading the shop happen once; every server starts from a copy. The server refuses to
//! run as root, so it runs as `postgres`, the user of Debian's package, from a folder that user can reach.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use sha2::{Digest, Sha256};

use super::authority::Certificate;
use super::port::Port;
use super::program::{Ended, eventually, run, run_with_input};
use super::scratch;

const SHOP: &str = include_str!("../../xtask/src/demo/shop.sql");

/// The application's own user, whose password only the gateway knows.
pub const USER: &str = "shop_app";
pub const PASSWORD: &str = "pw-needle-Vq8Zt3nKr5";
pub const DATABASE: &str = "shop";

/// Speed instead of durability: the server dies with its test.
const SETTINGS: &str = "
fsync = off
synchronous_commit = off
full_page_writes = off
max_connections = 120
shared_buffers = 16MB
autovacuum = off
log_connections = on
timezone = 'UTC'
";

/// How the server asks its clients to prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authentication {
    ScramSha256,
    Md5,
    Cleartext,
    /// Not at all: for comparing raw bytes with those of a direct connection.
    Trust,
}

impl Authentication {
    fn method(self) -> &'static str {
        match self {
            Self::ScramSha256 => "scram-sha-256",
            Self::Md5 => "md5",
            Self::Cleartext => "password",
            Self::Trust => "trust",
        }
    }
}

/// A running server; stopped and removed on drop.
pub struct Postgres {
    folder: tempfile::TempDir,
    port: Port,
    server: Child,
}

impl Postgres {
    /// A server as Debian would set it up: SCRAM-SHA-256, no TLS.
    pub fn start() -> Postgres {
        Self::launch(Authentication::ScramSha256, None, "")
    }

    /// A server whose log can be decoded, and that believes everybody, the superuser too.
    pub fn with_logical_log() -> Postgres {
        Self::launch(Authentication::Trust, None, "wal_level = logical\n")
    }

    /// A server that asks for the password in its own way.
    pub fn asking_for(authentication: Authentication) -> Postgres {
        Self::launch(authentication, None, "")
    }

    /// A server that takes TLS connections only.
    pub fn with_tls(certificate: &Certificate) -> Postgres {
        Self::launch(Authentication::ScramSha256, Some(certificate), "")
    }

    /// A server that takes TLS connections of both kinds of address in one way, written as in pg_hba.conf;
    /// `authority` signs its clients' certificates.
    pub fn with_tls_and(method: &str, certificate: &Certificate, authority: String) -> Postgres {
        let files = Some((certificate, Some(authority)));
        Self::launch_ruled("hostssl", method, files, false, "")
    }

    fn launch(
        authentication: Authentication,
        certificate: Option<&Certificate>,
        settings: &str,
    ) -> Postgres {
        let kind = match certificate {
            Some(_) => "hostssl",
            None => "host",
        };
        let is_md5 = authentication == Authentication::Md5;
        let files = certificate.map(|certificate| (certificate, None));
        Self::launch_ruled(kind, authentication.method(), files, is_md5, settings)
    }

    fn launch_ruled(
        kind: &str,
        method: &str,
        tls: Option<(&Certificate, Option<String>)>,
        is_md5: bool,
        settings: &str,
    ) -> Postgres {
        super::require_root();
        let template = template();
        let folder = public_folder("postgres");
        copy_tree(&template, &folder.path().join("data"));
        let port = Port::reserve();
        let data = folder.path().join("data");
        write_access_rules(&data, kind, method);
        if let Some((certificate, authority)) = tls {
            write_tls(&data, certificate, authority);
        }
        fs::OpenOptions::new()
            .append(true)
            .open(data.join("postgresql.conf"))
            .and_then(|mut file| file.write_all(settings.as_bytes()))
            .expect("the template has settings");
        let server = spawn(&data, folder.path(), port.number);
        let postgres = Postgres {
            folder,
            port,
            server,
        };
        postgres.wait_until_ready();
        if is_md5 {
            postgres.admin(&format!(
                "SET password_encryption = 'md5'; ALTER ROLE {USER} PASSWORD '{PASSWORD}'"
            ));
        }
        postgres
    }

    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// The libpq connection string of a client at `host`, without a password.
    pub fn address(&self, host: &str) -> String {
        format!(
            "host={host} port={} user={USER} dbname={DATABASE}",
            self.port()
        )
    }

    /// Runs SQL as the superuser, over the server's own socket, around everything under test.
    #[track_caller]
    pub fn admin(&self, sql: &str) -> String {
        let mut psql = Command::new(binary("psql"));
        psql.args([
            "-X",
            "-At",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
            "-d",
            DATABASE,
        ])
        .arg("-h")
        .arg(self.folder.path())
        .args(["-p", &self.port().to_string(), "-c", sql]);
        run(psql).succeeds().text().trim_end().to_owned()
    }

    /// Runs a client straight against the server, as anybody who knows the password can.
    #[track_caller]
    pub fn directly<S: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Ended {
        let mut words = words.into_iter();
        let mut client = Command::new(words.next().expect("a program to run"));
        client.args(words).env("PGPASSWORD", PASSWORD);
        run(client)
    }

    /// The server's own log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    fn wait_until_ready(&self) {
        eventually("PostgreSQL starts", Duration::from_secs(60), || {
            let mut ready = Command::new(binary("pg_isready"));
            ready
                .arg("-q")
                .arg("-h")
                .arg(self.folder.path())
                .args(["-p", &self.port().to_string()])
                .stderr(Stdio::null());
            (ready.status().is_ok_and(|status| status.success())
                && TcpStream::connect(("127.0.0.1", self.port())).is_ok())
            .then_some(())
        });
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        stop(&mut self.server);
    }
}

/// The newest PostgreSQL's own programs: Debian keeps the server's outside the PATH.
pub fn binary(name: &str) -> PathBuf {
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    versions.sort();
    versions
        .into_iter()
        .rev()
        .map(|version| version.join("bin").join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| {
            panic!("PostgreSQL's {name} is missing: run `cargo xtask test`, which installs it")
        })
}

/// The prepared data directory that servers start from, made by the first test that needs it.
fn template() -> PathBuf {
    let mut key = Sha256::new();
    for part in [
        SHOP,
        SETTINGS,
        PASSWORD,
        &binary("postgres").to_string_lossy(),
    ] {
        key.update(part.as_bytes());
    }
    let key = hex::encode(&key.finalize()[..8]);
    let cache = super::cache();
    let template = cache.join(format!("postgres-{key}"));
    let lock = File::create(cache.join("postgres.lock")).expect("the target folder is writable");
    lock.lock().expect("a file can be locked");
    if !template.exists() {
        let folder = public_folder("template");
        let data = folder.path().join("data");
        create(&data, folder.path());
        let unfinished = cache.join(format!("postgres-{key}.unfinished"));
        let _ = fs::remove_dir_all(&unfinished);
        copy_tree(&data, &unfinished);
        fs::rename(&unfinished, &template).expect("the template can be renamed");
    }
    template
}

fn create(data: &Path, folder: &Path) {
    let mut initdb = as_postgres(&binary("initdb"));
    initdb
        .args(["--username=postgres", "--auth=trust", "--encoding=UTF8"])
        .args(["--locale=C.UTF-8", "--no-sync", "--wal-segsize=1", "-D"])
        .arg(data);
    run(initdb).succeeds();
    let mut settings = fs::OpenOptions::new()
        .append(true)
        .open(data.join("postgresql.conf"))
        .expect("initdb writes postgresql.conf");
    settings
        .write_all(SETTINGS.as_bytes())
        .expect("postgresql.conf is writable");
    let port = Port::reserve();
    let mut server = spawn(data, folder, port.number);
    load_shop(folder, port.number);
    stop(&mut server);
}

fn load_shop(folder: &Path, port: u16) {
    eventually("PostgreSQL starts", Duration::from_secs(60), || {
        folder
            .join(format!(".s.PGSQL.{port}"))
            .exists()
            .then_some(())
    });
    let psql = |database: &str, user: &str| {
        let mut psql = Command::new(binary("psql"));
        psql.args([
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            user,
            "-d",
            database,
        ])
        .arg("-h")
        .arg(folder)
        .args(["-p", &port.to_string(), "-f", "-"]);
        psql
    };
    let roles = format!(
        "CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}';\nCREATE DATABASE {DATABASE} OWNER {USER};\n"
    );
    eventually("PostgreSQL answers", Duration::from_secs(60), || {
        let done = run_with_input(psql("postgres", "postgres"), roles.as_bytes());
        (done.status.success() || done.stderr.contains("already exists")).then_some(())
    });
    run_with_input(psql(DATABASE, USER), SHOP.as_bytes()).succeeds();
}

fn write_access_rules(data: &Path, kind: &str, method: &str) {
    let rules = format!(
        "local all all trust\n{kind} all all 127.0.0.1/32 {method}\n{kind} all all ::1/128 {method}\n\
         {kind} replication all 127.0.0.1/32 {method}\n"
    );
    write_for_postgres(&data.join("pg_hba.conf"), &rules);
}

fn write_tls(data: &Path, certificate: &Certificate, authority: Option<String>) {
    write_for_postgres(&data.join("server.crt"), &certificate.chain);
    write_for_postgres(&data.join("server.key"), &certificate.key);
    let mut more = "ssl = on\n".to_owned();
    if let Some(authority) = authority {
        write_for_postgres(&data.join("root.crt"), &authority);
        more.push_str("ssl_ca_file = 'root.crt'\n");
    }
    let path = data.join("postgresql.conf");
    let settings = fs::read_to_string(&path).expect("the template has settings");
    write_for_postgres(&path, &format!("{settings}\n{more}"));
}

fn spawn(data: &Path, folder: &Path, port: u16) -> Child {
    let log = File::create(folder.join("server.log")).expect("the folder is writable");
    as_postgres(&binary("postgres"))
        .arg("-D")
        .arg(data)
        .args(["-c", "listen_addresses=127.0.0.1,::1"])
        .arg("-c")
        .arg(format!("port={port}"))
        .arg("-c")
        .arg(format!("unix_socket_directories={}", folder.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("PostgreSQL starts")
}

/// The server's own "immediate shutdown": nothing is worth saving.
fn stop(server: &mut Child) {
    let pid = Pid::from_raw(server.id().cast_signed());
    // A clean stop when there are no sessions left, so that a template needs no recovery.
    let _ = kill(pid, Signal::SIGINT);
    let stopped = (0..250).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        matches!(server.try_wait(), Ok(Some(_)))
    });
    if !stopped {
        let _ = kill(pid, Signal::SIGQUIT);
        let _ = server.wait();
    }
}

/// A command that runs as `postgres` and ends when the test's process does.
fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
        .args(["--pdeathsig=QUIT", "--"])
        .arg(program)
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C.UTF-8");
    command
}

/// A new folder that belongs to `postgres`, under a path every user can walk.
fn public_folder(kind: &str) -> tempfile::TempDir {
    let folder = scratch::folder(kind);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("it is ours");
    let user = User::from_name("postgres")
        .ok()
        .flatten()
        .expect("PostgreSQL's package makes the user postgres");
    chown(
        folder.path(),
        Some(user.uid.as_raw()),
        Some(user.gid.as_raw()),
    )
    .expect("root may give a folder away");
    folder
}

/// Copies a folder with owners and modes, sharing blocks where the file system can.
fn copy_tree(from: &Path, to: &Path) {
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto"]).arg(from).arg(to);
    run(copy).succeeds();
}

fn write_for_postgres(path: &Path, text: &str) {
    fs::write(path, text).expect("root may write everywhere");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("root may");
    let folder = path.parent().expect("a file lies in a folder");
    let owner = fs::metadata(folder).expect("it exists");
    use std::os::unix::fs::MetadataExt;
    chown(path, Some(owner.uid()), Some(owner.gid())).expect("root may give a file away");
}

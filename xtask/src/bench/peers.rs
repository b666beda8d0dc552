//! Other proxies, where they are installed: each in front of the same server, with two threads where it has any.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::site::Way;
use crate::demo::database::{self, Database};
use crate::demo::leftovers::Stage;
use crate::toolchain;

struct Peer {
    program: &'static str,
    inspects: &'static str,
    pools: bool,
    /// Its configuration for this port of its own and the server's.
    configuration: fn(u16, u16) -> String,
    /// What stands before and behind the configuration file's name.
    arguments: (&'static [&'static str], &'static [&'static str]),
}

const PEERS: [Peer; 3] = [
    Peer {
        program: "pgbouncer",
        inspects: "messages, not statements",
        pools: true,
        configuration: pgbouncer,
        arguments: (&["-q", "-u", "nobody"], &[]),
    },
    Peer {
        program: "haproxy",
        inspects: "nothing",
        pools: false,
        configuration: haproxy,
        arguments: (&["-db", "-q", "-f"], &[]),
    },
    Peer {
        program: "pgcat",
        inspects: "messages, not statements",
        pools: true,
        configuration: pgcat,
        arguments: (&[], &[]),
    },
];

pub fn start(stage: &Stage, server: &Database) -> Result<Vec<Way>> {
    let mut ways = Vec::new();
    for peer in &PEERS {
        match toolchain::on_path(peer.program).or_else(|| in_sbin(peer.program)) {
            Some(program) => ways.push(run(peer, &program, stage, server)?),
            None => println!("{}: not installed", peer.program),
        }
    }
    Ok(ways)
}

fn in_sbin(program: &str) -> Option<std::path::PathBuf> {
    let path = Path::new("/usr/sbin").join(program);
    path.is_file().then_some(path)
}

fn run(peer: &Peer, program: &Path, stage: &Stage, server: &Database) -> Result<Way> {
    let port = database::free_port()?;
    let file = stage.folder().join(format!("{}.conf", peer.program));
    fs::write(&file, (peer.configuration)(port, server.port))?;
    let log = fs::File::create(stage.folder().join(format!("{}.log", peer.program)))?;
    let (before, behind) = peer.arguments;
    let process = Command::new("setpriv")
        .args(["--pdeathsig=KILL", "--"])
        .arg(program)
        .args(before)
        .arg(&file)
        .args(behind)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}", peer.program))?;
    let pid = process.id();
    stage.adopt(process)?;
    wait_for(port).with_context(|| format!("{} does not start", peer.program))?;
    Ok(Way::peer(
        peer.program,
        peer.inspects,
        port,
        pid,
        peer.pools,
    ))
}

fn wait_for(port: u16) -> Result<()> {
    let begun = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(
            begun.elapsed() < Duration::from_secs(10),
            "nobody listens on port {port}"
        );
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn pgbouncer(port: u16, server: u16) -> String {
    format!(
        "[databases]\n{name} = host=127.0.0.1 port={server} dbname={name} user={user}\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
         pool_mode = session\nmax_client_conn = 6000\ndefault_pool_size = 5200\n\
         server_reset_query =\nserver_reset_query_always = 0\n\
         server_idle_timeout = 86400\nserver_lifetime = 86400\nlog_connections = 0\nlog_disconnections = 0\n\
         ignore_startup_parameters = extra_float_digits\n",
        name = database::NAME,
        user = database::USER,
    )
}

fn haproxy(port: u16, server: u16) -> String {
    format!(
        "global\n  nbthread 2\n  maxconn 6000\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         listen postgres\n  bind 127.0.0.1:{port}\n  server postgres 127.0.0.1:{server}\n"
    )
}

fn pgcat(port: u16, server: u16) -> String {
    format!(
        "[general]\nhost = \"127.0.0.1\"\nport = {port}\nworker_threads = 2\nadmin_username = \"admin\"\n\
         admin_password = \"admin\"\nconnect_timeout = 5000\n\
         [pools.{name}]\npool_mode = \"session\"\nquery_parser_enabled = false\n\
         [pools.{name}.users.0]\nusername = \"{user}\"\npassword = \"\"\npool_size = 64\n\
         [pools.{name}.shards.0]\nservers = [[\"127.0.0.1\", {server}, \"primary\"]]\ndatabase = \"{name}\"\n",
        name = database::NAME,
        user = database::USER,
    )
}

//! The host's own resolution: `/etc/hosts`, then the servers of `/etc/resolv.conf`.

use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::config::{LookupIpStrategy, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, TokioResolver};

use super::pins::{Found, Lookup, LookupError, error};

/// How long one name may take, all servers and retries included.
const PATIENCE: Duration = Duration::from_secs(8);

/// Resolves as the host does, and notices when the host's configuration changes.
#[derive(Debug)]
pub struct System {
    hosts: PathBuf,
    servers: PathBuf,
    current: Mutex<Option<Current>>,
}

struct Current {
    resolver: TokioResolver,
    /// The state of the files that it was made from.
    stamps: [Stamp; 2],
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current")
            .field("stamps", &self.stamps)
            .finish_non_exhaustive()
    }
}

/// Inode, size and change time: a file with the same ones has not been written.
type Stamp = Option<(u64, u64, i64, i64)>;

impl Default for System {
    fn default() -> Self {
        Self::of("/etc/hosts", "/etc/resolv.conf")
    }
}

impl System {
    fn of(hosts: impl Into<PathBuf>, servers: impl Into<PathBuf>) -> Self {
        Self {
            hosts: hosts.into(),
            servers: servers.into(),
            current: Mutex::default(),
        }
    }

    fn resolver(&self) -> Result<TokioResolver, NetError> {
        let stamps = [stamp(&self.hosts), stamp(&self.servers)];
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = current.as_ref().filter(|known| known.stamps == stamps) {
            return Ok(known.resolver.clone());
        }
        let resolver = self.build()?;
        *current = Some(Current {
            resolver: resolver.clone(),
            stamps,
        });
        Ok(resolver)
    }

    fn build(&self) -> Result<TokioResolver, NetError> {
        let servers = fs::read(&self.servers).map_err(NetError::from);
        let (config, mut options) = servers.and_then(parse_resolv_conf).unwrap_or_else(|error| {
            // Hosts without DNS have their names in /etc/hosts.
            tracing::warn!(%error, file = %self.servers.display(), "no resolver");
            let nobody = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
            (nobody, ResolverOpts::default())
        });
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        // Answers are pinned by the caller; a second cache would only add its age to theirs.
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let provider = TokioRuntimeProvider::default();
        let builder = TokioResolver::builder_with_config(config, provider);
        let mut resolver = builder.with_options(options).build()?;
        resolver.set_hosts(Arc::new(read_hosts(&self.hosts).unwrap_or_default()));
        Ok(resolver)
    }
}

fn read_hosts(file: &Path) -> io::Result<Hosts> {
    let mut hosts = Hosts::default();
    hosts.read_hosts_conf(File::open(file)?)?;
    Ok(hosts)
}

fn stamp(file: &Path) -> Stamp {
    let metadata = fs::metadata(file).ok()?;
    Some((
        metadata.ino(),
        metadata.len(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ))
}

impl Lookup for System {
    fn lookup<'a>(
        &'a self,
        name: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Found, LookupError>> + Send + 'a>> {
        Box::pin(async move {
            let resolver = self
                .resolver()
                .map_err(|cause| error(name, cause.to_string()))?;
            let asked = resolver.lookup_ip(absolute(name));
            let answer = tokio::time::timeout(PATIENCE, asked)
                .await
                .map_err(|_| error(name, format!("no answer within {} s", PATIENCE.as_secs())))?
                .map_err(|cause| error(name, cause.to_string()))?;
            // IPv4 first: a host without a route for IPv6 would pay for a failure each time.
            let mut addresses: Vec<IpAddr> = answer.iter().collect();
            addresses.sort_by_key(IpAddr::is_ipv6);
            Ok(Found {
                addresses,
                ttl: answer
                    .valid_until()
                    .saturating_duration_since(Instant::now()),
            })
        })
    }
}

/// A name with a dot is whole: the search list of resolv.conf would only let others answer for it. A name
/// without one is an alias of this network, and is looked up as every program here would.
fn absolute(name: &str) -> String {
    match name.contains('.') && !name.ends_with('.') {
        true => format!("{name}."),
        false => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::op::{Message, OpCode, ResponseCode};
    use hickory_proto::rr::rdata::{A, AAAA};
    use hickory_proto::rr::{RData, Record, RecordType};
    use tokio::net::UdpSocket;
    use tokio::task::JoinHandle;

    use super::*;

    #[test]
    fn search_lists_are_for_short_names() {
        for (name, expected) in [("db", "db"), ("db.internal", "db.internal."), ("a.", "a.")] {
            assert_eq!(absolute(name), expected);
        }
    }

    #[tokio::test]
    async fn this_host_knows_itself() {
        let found = System::default().lookup("localhost").await.unwrap();
        assert!(found.addresses.iter().all(IpAddr::is_loopback), "{found:?}");
        assert!(!found.addresses.is_empty());
    }

    /// A server that knows one name. Binding port 53 needs root; without it the test fails.
    async fn serve(server: Ipv4Addr, name: &str, v4: Ipv4Addr, ttl: u32) -> JoinHandle<()> {
        let socket = UdpSocket::bind((server, 53)).await.unwrap();
        let name = name.to_owned();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                let asked = Message::from_vec(&buffer[..length]).unwrap();
                let query = asked.queries[0].clone();
                let mut answer = Message::response(asked.id, OpCode::Query);
                answer.metadata.recursion_available = true;
                answer.add_query(query.clone());
                if query.name().to_lowercase().to_ascii() != name {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                } else if query.query_type() == RecordType::A {
                    let data = RData::A(A(v4));
                    answer.add_answer(Record::from_rdata(query.name().clone(), ttl, data));
                } else {
                    let data = RData::AAAA(AAAA(v4.to_ipv6_compatible()));
                    answer.add_answer(Record::from_rdata(query.name().clone(), ttl, data));
                }
                let _ = socket.send_to(&answer.to_vec().unwrap(), client).await;
            }
        })
    }

    #[tokio::test]
    async fn servers_and_files_that_change() {
        let [a, b] = std::process::id().to_be_bytes()[2..] else {
            panic!("four bytes");
        };
        let (first, second) = (Ipv4Addr::new(127, 53, a, b), Ipv4Addr::new(127, 54, a, b));
        let (one, other) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let serving = [
            serve(first, "db.example.", one, 7).await,
            serve(second, "db.example.", other, 9).await,
        ];
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let system = System::of(file("hosts"), file("resolv.conf"));
        let error = system.lookup("db.example").await.unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("db.example cannot be resolved")
        );

        // A search list is no way to answer for a name that is whole.
        let text = format!("search evil.example\nnameserver {first}\n");
        fs::write(file("resolv.conf"), text).unwrap();
        let found = system.lookup("db.example").await.unwrap();
        assert_eq!(
            found.addresses,
            [IpAddr::from(one), one.to_ipv6_compatible().into()]
        );
        assert!((5..=7).contains(&found.ttl.as_secs()), "{found:?}");
        assert!(system.lookup("elsewhere.example").await.is_err());

        fs::write(file("resolv.conf"), format!("nameserver {second}\n")).unwrap();
        let found = system.lookup("db.example").await.unwrap();
        assert_eq!(found.addresses[0], IpAddr::from(other));

        fs::write(file("hosts"), "10.0.0.3 db.example short\n").unwrap();
        for name in ["db.example", "short"] {
            let found = system.lookup(name).await.unwrap();
            assert_eq!(found.addresses[0], "10.0.0.3".parse::<IpAddr>().unwrap());
        }
        serving.iter().for_each(JoinHandle::abort);
    }
}

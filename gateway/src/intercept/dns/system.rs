//! The host's own resolution: `/etc/hosts`, then the servers of `/etc/resolv.conf`.

use std::fs;
use std::future::Future;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;

use super::pins::{Found, Lookup, LookupError, error};

/// What decides where names are looked up.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// How long one name may take, all servers and retries included.
const PATIENCE: Duration = Duration::from_secs(8);

/// Resolves as the host does, and notices when the host's configuration changes.
#[derive(Debug, Default)]
pub struct System {
    current: Mutex<Option<Current>>,
}

struct Current {
    resolver: TokioResolver,
    /// The state of [`FILES`] that it was made from.
    stamps: Vec<Stamp>,
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

impl System {
    fn resolver(&self) -> Result<TokioResolver, String> {
        let stamps: Vec<Stamp> = FILES.iter().map(|file| stamp(file)).collect();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = current.as_ref().filter(|known| known.stamps == stamps) {
            return Ok(known.resolver.clone());
        }
        let resolver = build().map_err(|error| error.to_string())?;
        *current = Some(Current {
            resolver: resolver.clone(),
            stamps,
        });
        Ok(resolver)
    }
}

fn build() -> Result<TokioResolver, hickory_resolver::net::NetError> {
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|error| {
        // Hosts without DNS have their names in /etc/hosts.
        tracing::warn!(%error, "no servers in /etc/resolv.conf");
        TokioResolver::builder_with_config(
            ResolverConfig::from_parts(None, Vec::new(), Vec::new()),
            TokioRuntimeProvider::default(),
        )
    });
    let options: &mut ResolverOpts = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // Answers are pinned here; a second cache would only add its age to theirs.
    options.cache_size = 0;
    builder.build()
}

fn stamp(file: &str) -> Stamp {
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
            let resolver = self.resolver().map_err(|reason| error(name, reason))?;
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
}

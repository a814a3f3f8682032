//! The store of a fleet: etcd, below one prefix per cluster.
//!
//! ```text
//! get, list    linearizable reads; a list is of one revision, however many pages it takes
//! put_if       txn: mod_revision == expected (0: absent) ? put : get
//! delete_if    txn: mod_revision == expected             ? delete : get
//! ```
//! A request is sent again, to whichever endpoint answers, until [`DEADLINE`]. A write whose
//! answer was lost is resolved by the next comparison: the value that we sent, at a newer
//! revision, is ours. That holds past the deadline too, for the next write of that key.
//! Promise: of writers at one revision one wins; an etcd that does not answer is
//! [`Error::Unusable`], within the deadline. Nothing outside this module names `etcd_client`.

pub mod election;

use super::{Answer, Error, Revision, Store, Versioned};
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error as EtcdError, GetOptions,
    Identity, KeyValue, TlsOptions, Txn, TxnOp, TxnOpResponse,
};
use proto::authorization::Secret;
use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Mutex as AsyncMutex, time::Instant};
use tonic::Code;

/// How long one call tries: an election in etcd takes 1 to 3 s with its defaults.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How long one endpoint may take: a healthy one answers in milliseconds, a stopped one never.
const TRY: Duration = Duration::from_secs(2);
/// Pause between two tries.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Pings while a request runs. etcd takes offence at more than one in 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// Records of one page of a list: a record has kilobytes, etcd takes 1.5 MiB at most.
const PAGE: i64 = 32;
/// Largest answer: a page of the largest records.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Where etcd is, and who we are to it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub endpoints: Vec<String>,
    /// Before every key: one per cluster of coordinators.
    pub prefix: String,
    pub user: Option<(String, Secret)>,
    /// Certificate authorities for https, PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// Our certificate and its key, PEM.
    pub identity: Option<(Vec<u8>, Secret)>,
}

/// A write whose answer never came.
#[derive(Debug)]
struct Unheard {
    expected: Option<Revision>,
    /// None: a deletion.
    value: Option<Vec<u8>>,
}

/// A [`Store`] in etcd.
#[derive(Clone)]
pub struct Etcd {
    options: Arc<Options>,
    /// Made by the first call: logging in needs an etcd that answers.
    client: Arc<AsyncMutex<Option<Client>>>,
    unheard: Arc<Mutex<BTreeMap<String, Unheard>>>,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What a conditional write came to.
enum Written {
    At(Revision),
    /// This is there. `retried`: perhaps by an earlier try of this very call.
    Other {
        found: Option<Versioned>,
        retried: bool,
    },
}

impl Etcd {
    /// Connects with the first call.
    pub fn new(options: Options) -> Self {
        Self { options: Arc::new(options), client: Arc::default(), unheard: Arc::default() }
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.options.prefix)
    }

    fn unheard(&self) -> MutexGuard<'_, BTreeMap<String, Unheard>> {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn client(&self) -> Result<Client, EtcdError> {
        let mut slot = self.client.lock().await;
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(TRY)
            .with_timeout(TRY)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(false)
            .with_auto_token_refresh(true);
        if let Some((user, password)) = &self.options.user {
            connect = connect.with_user(user.clone(), password.expose());
        }
        if self.options.endpoints.iter().any(|url| url.starts_with("https:")) {
            let mut tls = TlsOptions::new();
            if let Some(pem) = &self.options.ca_pem {
                tls = tls.ca_certificate(Certificate::from_pem(pem));
            }
            if let Some((certificate, key)) = &self.options.identity {
                tls = tls.identity(Identity::from_pem(certificate, key.expose()));
            }
            connect = connect.with_tls(tls);
        }
        let client = Client::connect(&self.options.endpoints[..], Some(connect)).await?;
        Ok(slot.insert(client).clone())
    }

    /// Sends a request until it is answered or the deadline is over.
    async fn answered<T, F>(&self, request: impl FnMut(Client) -> F) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, EtcdError>>,
    {
        self.answered_after(request).await.map(|(answer, _)| answer)
    }

    /// The same, and whether an earlier try may have been carried out without an answer.
    async fn answered_after<T, F>(
        &self,
        mut request: impl FnMut(Client) -> F,
    ) -> Result<(T, bool), Trouble>
    where
        F: Future<Output = Result<T, EtcdError>>,
    {
        let deadline = Instant::now() + DEADLINE;
        let mut retried = false;
        loop {
            let attempt = async { request(self.client().await?).await };
            let reason = match tokio::time::timeout(TRY, attempt).await {
                Ok(Ok(answer)) => return Ok((answer, retried)),
                Ok(Err(error)) => match refusal(&error) {
                    Some(reason) => return Err(Trouble::Refused(reason)),
                    None => error.to_string(),
                },
                Err(_) => format!("no answer within {} s", TRY.as_secs()),
            };
            if Instant::now() + AGAIN_AFTER >= deadline {
                return Err(Trouble::Unanswered(reason));
            }
            tracing::debug!(%reason, "etcd: trying again");
            retried = true;
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    /// Writes (or deletes, without a value) if the key is at `expected`.
    async fn write(
        &self,
        key: &str,
        value: Option<&[u8]>,
        expected: Option<Revision>,
    ) -> Result<Written, Trouble> {
        let full = self.key(key);
        let held = i64::try_from(expected.map_or(0, |revision| revision.0)).unwrap_or(i64::MAX);
        let change = match value {
            Some(value) => TxnOp::put(full.clone(), value, None),
            None => TxnOp::delete(full.clone(), None),
        };
        let txn = Txn::new()
            .when([Compare::mod_revision(full.clone(), CompareOp::Equal, held)])
            .and_then([change])
            .or_else([TxnOp::get(full, None)]);
        let (answer, retried) = self
            .answered_after(|client| {
                let txn = txn.clone();
                async move { client.kv_client().txn(txn).await }
            })
            .await?;
        if answer.succeeded() {
            return Ok(Written::At(answer.header().map_or(Revision(0), |h| at(h.revision()))));
        }
        let found = answer.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(get) => get.kvs().first().map(versioned),
            _ => None,
        });
        Ok(Written::Other { found, retried })
    }

    /// [`Etcd::write`], with what an earlier call of ours left open resolved first.
    async fn change(
        &self,
        key: &str,
        value: Option<&[u8]>,
        expected: Option<Revision>,
    ) -> Result<Revision, Error> {
        let conflict = || Error::Conflict { key: key.to_owned() };
        let mut expected = expected;
        loop {
            let (found, retried) = match self.write(key, value, expected).await {
                Ok(Written::At(revision)) => {
                    self.unheard().remove(key);
                    return Ok(revision);
                }
                Ok(Written::Other { found, retried }) => (found, retried),
                Err(Trouble::Refused(reason)) => return Err(Error::Refused { reason }),
                Err(Trouble::Unanswered(reason)) => {
                    let unheard = Unheard { expected, value: value.map(<[u8]>::to_vec) };
                    // The first one left open is the one whose place is known.
                    self.unheard().entry(key.to_owned()).or_insert(unheard);
                    return Err(Error::Unusable { reason });
                }
            };
            let there = found.as_ref().map(|found| found.value.as_slice());
            // This very write, by a try whose answer was lost.
            if retried && there == value && is_newer(found.as_ref(), expected) {
                self.unheard().remove(key);
                return Ok(found.map_or(Revision(0), |found| found.revision));
            }
            let Some(open) = self.unheard().remove(key) else { return Err(conflict()) };
            if open.expected != expected || open.value.as_deref() != there {
                return Err(conflict());
            }
            expected = found.map(|found| found.revision);
        }
    }

    async fn read_prefix(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, Error> {
        let end = after_prefix(&self.key(prefix));
        let mut from = self.key(prefix);
        let mut revision = 0;
        let mut all = Vec::new();
        loop {
            let options =
                GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_revision(revision);
            let page = self
                .answered(|client| {
                    let (from, options) = (from.clone(), options.clone());
                    async move {
                        let mut kv = client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
                        kv.get(from, Some(options)).await
                    }
                })
                .await?;
            if revision == 0 {
                revision = page.header().map_or(0, |header| header.revision());
            }
            for kv in page.kvs() {
                let key = String::from_utf8_lossy(kv.key()).into_owned();
                let key = key.strip_prefix(&self.options.prefix).unwrap_or(&key).to_owned();
                all.push((key, versioned(kv)));
            }
            match page.kvs().last() {
                // The next page begins right behind the last key.
                Some(last) if page.more() => {
                    from = format!("{}\0", String::from_utf8_lossy(last.key()));
                }
                _ => return Ok(all),
            }
        }
    }
}

impl Store for Etcd {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Versioned>> {
        Box::pin(async move {
            let full = self.key(key);
            let answer = self
                .answered(|client| {
                    let full = full.clone();
                    async move { client.kv_client().get(full, None).await }
                })
                .await?;
            Ok(answer.kvs().first().map(versioned))
        })
    }

    fn put_if<'a>(
        &'a self,
        key: &'a str,
        value: Vec<u8>,
        expected: Option<Revision>,
    ) -> Answer<'a, Revision> {
        Box::pin(async move { self.change(key, Some(&value), expected).await })
    }

    fn delete_if<'a>(&'a self, key: &'a str, expected: Revision) -> Answer<'a, ()> {
        Box::pin(async move { self.change(key, None, Some(expected)).await.map(|_| ()) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<(String, Versioned)>> {
        Box::pin(async move { self.read_prefix(prefix).await })
    }
}

/// Why there is no answer.
enum Trouble {
    Refused(String),
    /// It may have been carried out.
    Unanswered(String),
}

impl From<Trouble> for Error {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Refused(reason) => Self::Refused { reason },
            Trouble::Unanswered(reason) => Self::Unusable { reason },
        }
    }
}

/// What etcd says no to for good: a wrong password, a missing permission, a bad address.
fn refusal(error: &EtcdError) -> Option<String> {
    match error {
        EtcdError::GRpcStatus(status) => match status.code() {
            Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated => {
                Some(status.message().to_owned())
            }
            _ => None,
        },
        EtcdError::InvalidArgs(_) | EtcdError::InvalidUri(_) => Some(error.to_string()),
        _ => None,
    }
}

fn at(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}

fn versioned(kv: &KeyValue) -> Versioned {
    Versioned { value: kv.value().to_vec(), revision: at(kv.mod_revision()) }
}

/// Whether what is there was written after `expected`; for a deletion: whether nothing is there.
fn is_newer(found: Option<&Versioned>, expected: Option<Revision>) -> bool {
    found.is_none_or(|found| found.revision.0 > expected.map_or(0, |revision| revision.0))
}

/// The first key that does not begin with `prefix`.
fn after_prefix(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // Every key: etcd's own sign for it.
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_key_outside_it() {
        assert_eq!(after_prefix("/migration/"), b"/migration0");
        assert_eq!(after_prefix(""), [0]);
    }

    #[test]
    fn a_password_is_not_printed() {
        let user = Some(("skein".to_owned(), Secret::new("hunter2-and-more")));
        let store = Etcd::new(Options { user, ..Options::default() });
        assert!(!format!("{store:?}").contains("hunter2"));
    }
}

//! One source server and a migration's context on it.

use coordinator::{
    filter::Filter,
    migration::context::Context,
    source::identity::{Choices, Decision, Originals, Survey, decide, originals, survey},
};
use loadtest::cluster::postgres::{Builder, Postgres};
use pg::{Conninfo, Session, Settings};
use proto::v1::{self, IdentityChoice, MigrationSpec};
use std::time::Duration;

/// Longest wait for an effect in a test.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A source of each version that is on this machine.
pub(crate) fn each_version(builder: fn() -> Builder) -> Vec<Stand> {
    [15, 17]
        .into_iter()
        .filter_map(|major| builder().major(major).start_or_skip().unwrap())
        .map(Stand::of)
        .collect()
}

pub(crate) struct Stand {
    pub(crate) server: Postgres,
    pub(crate) context: Context,
}

impl Stand {
    pub(crate) fn of(server: Postgres) -> Self {
        let conninfo = Conninfo::parse(&server.conninfo("postgres")).unwrap();
        let version = server.major() * 10_000;
        let context = Context {
            name: "m".into(),
            spec: MigrationSpec { name: "m".into(), ..MigrationSpec::default() },
            source: conninfo.clone(),
            target: conninfo,
            epoch: 1,
            source_encoding: "UTF8".into(),
            source_version: version,
            target_version: version,
            dir: "/nonexistent".into(),
        };
        Self { server, context }
    }

    pub(crate) fn psql(&self, statements: &str) -> String {
        self.server.psql("postgres", statements).unwrap()
    }

    pub(crate) async fn session(&self, role: &str) -> Session {
        let settings = Settings::read(self.context.session_name(role, 1));
        Session::connect(&self.context.source, &settings).await.unwrap()
    }

    /// A session of somebody else.
    pub(crate) async fn stranger(&self) -> Session {
        let session = self.server.client("postgres").await.unwrap();
        session
            .batch(&"set search_path = public; set application_name = 'shop'".into())
            .await
            .unwrap();
        session
    }

    pub(crate) async fn survey(&self) -> Survey {
        survey(&self.session("survey").await, &Filter::default()).await.unwrap()
    }

    pub(crate) async fn decided(&self, all: IdentityChoice) -> (Survey, Vec<Decision>, Originals) {
        let survey = self.survey().await;
        let identity = v1::Identity { all: all.into(), ..v1::Identity::default() };
        let choices = Choices::try_from(Some(&identity)).unwrap();
        let decisions = decide(&survey, &choices).unwrap();
        let originals = originals(&survey, &decisions);
        (survey, decisions, originals)
    }
}

/// Waits until `holds` is true.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what} did not come in {DEADLINE:?}"));
}

//! `skein workers`: who copies.

use super::{Context, request};
use crate::{
    output::{self, Form},
    report::{Exit, Failure},
    unit, view,
};
use proto::v1;
use serde::Serialize;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  skein workers\n  skein workers --json | jq '.workers | length'"
)]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Document {
    workers: Vec<view::Worker>,
}

pub(crate) async fn run(context: &Context, _args: Args) -> Result<Exit, Failure> {
    let mut client = context.connect().await?;
    let answer = client.list_workers(request(v1::ListWorkersRequest {})).await?;
    let workers = answer.into_inner().workers;
    if context.form == Form::Json {
        let workers = workers.iter().map(view::Worker::from).collect();
        output::json(&Document { workers })?;
        return Ok(Exit::Ok);
    }
    if workers.is_empty() {
        output::say("No worker has registered.");
        return Ok(Exit::Ok);
    }
    let row = |worker: &v1::Worker| {
        let seen = worker.seen_at.as_ref().and_then(|at| unit::instant(at.seconds));
        vec![
            worker.worker_id.clone(),
            worker.host.clone(),
            worker.pid.to_string(),
            format!("{}/{}", worker.running, worker.slots),
            if worker.draining { "draining" } else { "working" }.to_owned(),
            seen.unwrap_or_default(),
            worker.version.clone(),
        ]
    };
    let rows: Vec<_> = workers.iter().map(row).collect();
    let header = ["WORKER", "HOST", "PID", "BUSY", "STATE", "SEEN", "VERSION"];
    output::data(&output::table(&header, &rows))?;
    Ok(Exit::Ok)
}

//! WorkerService: what a worker asks. A standby answers nothing of it, and names who leads.

use crate::{fleet::HEARTBEAT, registry::Registry, verify::Board};
use proto::{
    status::Classify as _,
    v1::{self, worker_service_server::WorkerService},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// Pause between two looks for a task while a worker waits for one.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Longest wait of one LeaseTask call.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The service.
#[derive(Debug)]
pub struct Workers {
    registry: Arc<Registry>,
}

impl Workers {
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry }
    }

    /// A task of any migration, or a table to compare.
    async fn next_task(&self, worker: &str) -> Result<Option<v1::Task>, Status> {
        for handle in self.registry.list() {
            let Some(leases) = handle.shared.leases() else { continue };
            match leases.grant(worker).await {
                Ok(Some(task)) => return Ok(Some(task)),
                Ok(None) => {}
                // The others may have work; this one is looked at again by the next call.
                Err(error) => tracing::warn!(error = %error.report().primary, "no task granted"),
            }
        }
        Ok(self.registry.board.grant(worker))
    }
}

#[tonic::async_trait]
impl WorkerService for Workers {
    async fn register_worker(
        &self,
        request: Request<v1::RegisterWorkerRequest>,
    ) -> Result<Response<v1::RegisterWorkerResponse>, Status> {
        self.registry.check_leading()?;
        let request = request.into_inner();
        tracing::info!(worker = request.worker_id, host = request.host, "worker registered");
        self.registry.fleet.register(request);
        let heartbeat_ms = u32::try_from(HEARTBEAT.as_millis()).unwrap_or(u32::MAX);
        Ok(Response::new(v1::RegisterWorkerResponse { heartbeat_ms }))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        self.registry.check_leading()?;
        let request = request.into_inner();
        let known = self.registry.fleet.heard(&request);
        let mut response = v1::HeartbeatResponse {
            unknown: !known,
            drain: self.registry.fleet.is_draining(),
            ..Default::default()
        };
        response.fenced = self.registry.board.renew(&request.worker_id, &request.leases);
        for handle in self.registry.list() {
            if let Some(leases) = handle.shared.leases() {
                let of_plan: Vec<v1::HeldLease> =
                    request.leases.iter().filter(|l| !Board::is_of(l.task_id)).cloned().collect();
                let verdict = leases.renew(&request.worker_id, &of_plan);
                response.fenced.extend(verdict.fenced);
                response.revoked.extend(verdict.revoked);
            }
            match handle.shared.holds() {
                Some(holds) => response.holds.extend(holds),
                None => response.holds_unknown = true,
            }
        }
        if !self.registry.is_confirmed() {
            // Another may lead by now, and know better: nobody stops work on our word.
            response.fenced.clear();
            response.revoked.clear();
            response.holds_unknown = true;
        }
        // What was read may have been cleared meanwhile.
        self.registry.check_leading()?;
        Ok(Response::new(response))
    }

    async fn lease_task(
        &self,
        request: Request<v1::LeaseTaskRequest>,
    ) -> Result<Response<v1::LeaseTaskResponse>, Status> {
        self.registry.check_leading()?;
        let request = request.into_inner();
        let wait = Duration::from_millis(request.wait_ms.into()).min(LONGEST_WAIT);
        let stopping = self.registry.stopping();
        let asked_at = Instant::now();
        loop {
            self.registry.check_leading()?;
            let task = match self.registry.is_confirmed() {
                true => self.next_task(&request.worker_id).await?,
                false => None,
            };
            if task.is_some() || asked_at.elapsed() >= wait {
                return Ok(Response::new(v1::LeaseTaskResponse { task }));
            }
            tokio::select! {
                () = stopping.cancelled() => {
                    return Ok(Response::new(v1::LeaseTaskResponse { task: None }));
                }
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    async fn complete_task(
        &self,
        request: Request<v1::CompleteTaskRequest>,
    ) -> Result<Response<v1::CompleteTaskResponse>, Status> {
        self.registry.check_leading()?;
        let request = request.into_inner();
        if Board::is_of(request.task_id) {
            if let Some(v1::complete_task_request::Result::Verify(result)) = request.result {
                self.registry.board.complete(request.task_id, result);
            }
        } else if let Ok(handle) = self.registry.get(&request.migration)
            && let Some(leases) = handle.shared.leases()
        {
            leases.complete(&request).await.map_err(|error| Status::from(error.report()))?;
        }
        Ok(Response::new(v1::CompleteTaskResponse {}))
    }

    async fn release_task(
        &self,
        request: Request<v1::ReleaseTaskRequest>,
    ) -> Result<Response<v1::ReleaseTaskResponse>, Status> {
        self.registry.check_leading()?;
        let request = request.into_inner();
        if Board::is_of(request.task_id) {
            let cause = request.cause();
            self.registry.board.release(request.task_id, cause, request.error);
        } else if let Ok(handle) = self.registry.get(&request.migration)
            && let Some(leases) = handle.shared.leases()
        {
            leases.release(&request);
        }
        Ok(Response::new(v1::ReleaseTaskResponse {}))
    }
}

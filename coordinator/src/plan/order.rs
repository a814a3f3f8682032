//! Which task is granted next.
//!
//! Largest table first; few large tables open at once, so that one loss of the snapshot costs
//! little; builds of a table as soon as its last chunk is in. Promise: a grant, a return and a
//! removal cost a few steps in a tree, however many tasks there are.

use super::{COPY_STAGE, REFRESH_STAGE, TABLE_BUILD_STAGE, Task};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
};

/// Where a relation whose chunks are ready stands among the others: those copied again first,
/// since their snapshot is the younger and a small one may be held still for it; then the largest.
type Rank = (u32, u64, Reverse<u32>);

/// A build that may run: its table's bytes, its id.
type BuildRank = (u64, Reverse<u64>);

/// What is known of a relation's tasks.
#[derive(Debug, Default)]
struct Relation {
    /// Over all its chunks, finished ones too.
    bytes: u64,
    /// Chunks that are not finished.
    left: usize,
    /// Bytes of chunks that are neither finished nor granted.
    ready_bytes: u64,
    snapshot_epoch: u32,
    /// Chunks, and builds of its own stage, that are not granted.
    chunks: BTreeSet<u64>,
    builds: BTreeSet<u64>,
}

impl Relation {
    fn is_large(&self) -> bool {
        self.left >= LARGE
    }

    /// A chunk was granted or is finished.
    fn is_begun(&self) -> bool {
        self.ready_bytes < self.bytes || self.chunks.len() < self.left
    }

    fn is_open(&self) -> bool {
        self.is_large() && self.is_begun()
    }

    fn rank(&self, relid: u32) -> Rank {
        (self.snapshot_epoch, self.bytes, Reverse(relid))
    }
}

/// The tasks that are not finished, and which of them may run now.
#[derive(Debug, Default)]
pub struct Queue {
    open: BTreeMap<u64, Task>,
    granted: HashSet<u64>,
    relations: HashMap<u32, Relation>,
    /// Large relations that are begun.
    opened: HashSet<u32>,
    /// Relations with a chunk to grant: begun large ones, other large ones, small ones.
    opened_ready: BTreeSet<Rank>,
    large_ready: BTreeSet<Rank>,
    small_ready: BTreeSet<Rank>,
    /// Builds whose table is in.
    builds_ready: BTreeSet<BuildRank>,
    /// Builds and refreshes that wait for everything lower, by stage; granted ones are not here.
    later: BTreeMap<i32, BTreeSet<BuildRank>>,
    /// Tasks not finished, by stage.
    stages: BTreeMap<i32, usize>,
    max_open_tables: usize,
    refresh: bool,
}

/// A relation with more than one chunk is large: it counts against `max_open_tables`.
const LARGE: usize = 2;

impl Queue {
    pub fn new(max_open_tables: usize) -> Self {
        Self { max_open_tables: max_open_tables.max(1), ..Self::default() }
    }

    pub fn insert(&mut self, task: Task) {
        *self.stages.entry(task.stage).or_default() += 1;
        let (task_id, relid) = (task.task_id, task.relid);
        self.lift(relid);
        if task.stage == COPY_STAGE {
            let relation = self.relations.entry(relid).or_default();
            relation.bytes += task.size_bytes;
            relation.left += 1;
            relation.snapshot_epoch = relation.snapshot_epoch.max(task.snapshot_epoch);
        }
        self.open.insert(task_id, task);
        self.make_ready(task_id);
        self.place(relid);
    }

    pub fn get(&self, task_id: u64) -> Option<&Task> {
        self.open.get(&task_id)
    }

    /// Lets tasks of [`REFRESH_STAGE`] run.
    pub fn allow_refresh(&mut self) {
        self.refresh = true;
    }

    pub fn allows_refresh(&self) -> bool {
        self.refresh
    }

    pub fn granted(&mut self, task_id: u64) {
        let Some(relid) = self.open.get(&task_id).map(|task| task.relid) else { return };
        if self.granted.insert(task_id) {
            self.lift(relid);
            self.make_unready(task_id);
            self.place(relid);
        }
    }

    /// Back to ready.
    pub fn returned(&mut self, task_id: u64) {
        let Some(relid) = self.open.get(&task_id).map(|task| task.relid) else { return };
        if self.granted.remove(&task_id) {
            self.lift(relid);
            self.make_ready(task_id);
            self.place(relid);
        }
    }

    /// Takes a task out: finished, or replaced.
    pub fn remove(&mut self, task_id: u64) -> Option<Task> {
        let relid = self.open.get(&task_id)?.relid;
        self.lift(relid);
        if !self.granted.remove(&task_id) {
            self.make_unready(task_id);
        }
        let task = self.open.remove(&task_id)?;
        if let Some(count) = self.stages.get_mut(&task.stage) {
            *count -= 1;
        }
        if task.stage == COPY_STAGE
            && let Some(relation) = self.relations.get_mut(&relid)
        {
            relation.left -= 1;
        }
        self.place(relid);
        Some(task)
    }

    /// Tasks of `stage` and below that are not finished.
    pub fn unfinished_through(&self, stage: i32) -> usize {
        self.stages.range(..=stage).map(|(_, count)| count).sum()
    }

    pub fn copies_left(&self, relid: u32) -> usize {
        self.relations.get(&relid).map_or(0, |relation| relation.left)
    }

    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Task> {
        self.open.values()
    }

    /// The next task that may run, builds before copies.
    pub fn next(&self) -> Option<u64> {
        self.next_build().or_else(|| self.next_copy())
    }

    fn next_build(&self) -> Option<u64> {
        let lowest = self.stages.iter().find(|(_, count)| **count > 0).map(|(stage, _)| *stage)?;
        let later = self
            .later
            .get(&lowest)
            .filter(|_| lowest < REFRESH_STAGE || self.refresh)
            .and_then(BTreeSet::last);
        self.builds_ready.last().max(later).map(|(_, Reverse(task_id))| *task_id)
    }

    /// An opened table is finished first; then the largest.
    fn next_copy(&self) -> Option<u64> {
        let may_open = self.opened.len() < self.max_open_tables;
        let large = self.large_ready.last().filter(|_| may_open);
        let (.., Reverse(relid)) =
            self.opened_ready.last().or_else(|| self.small_ready.last().max(large))?;
        self.relations.get(relid)?.chunks.first().copied()
    }

    /// Bytes of relations that are begun and not done: what a lost snapshot would cost.
    pub fn bytes_at_risk(&self) -> u64 {
        let unfinished = self.relations.values().filter(|relation| relation.left > 0);
        unfinished.map(|relation| relation.bytes.saturating_sub(relation.ready_bytes)).sum()
    }

    fn make_ready(&mut self, task_id: u64) {
        self.set_ready(task_id, true);
    }

    fn make_unready(&mut self, task_id: u64) {
        self.set_ready(task_id, false);
    }

    /// Enters a task among what may be granted, or takes it out. Between `lift` and `place`.
    fn set_ready(&mut self, task_id: u64, ready: bool) {
        let Some(task) = self.open.get(&task_id) else { return };
        let relation = self.relations.entry(task.relid).or_default();
        match task.stage {
            COPY_STAGE if ready => {
                relation.ready_bytes += task.size_bytes;
                relation.chunks.insert(task_id);
            }
            COPY_STAGE => {
                relation.ready_bytes -= task.size_bytes;
                relation.chunks.remove(&task_id);
            }
            TABLE_BUILD_STAGE if ready => drop(relation.builds.insert(task_id)),
            TABLE_BUILD_STAGE => drop(relation.builds.remove(&task_id)),
            stage => {
                // No bytes: of a later stage the first that was planned comes first.
                let rank = (0, Reverse(task_id));
                let stage = self.later.entry(stage).or_default();
                if ready {
                    stage.insert(rank)
                } else {
                    stage.remove(&rank)
                };
            }
        }
    }

    /// Takes a relation out of the trees, before it changes.
    fn lift(&mut self, relid: u32) {
        let Some(relation) = self.relations.get(&relid) else { return };
        let rank = relation.rank(relid);
        for ready in [&mut self.opened_ready, &mut self.large_ready, &mut self.small_ready] {
            ready.remove(&rank);
        }
        for task_id in &relation.builds {
            self.builds_ready.remove(&(relation.bytes, Reverse(*task_id)));
        }
        self.opened.remove(&relid);
    }

    /// Puts it back where it belongs now.
    fn place(&mut self, relid: u32) {
        let Some(relation) = self.relations.get(&relid) else { return };
        if relation.is_open() {
            self.opened.insert(relid);
        }
        if !relation.chunks.is_empty() {
            let ready = match (relation.is_large(), relation.is_begun()) {
                (true, true) => &mut self.opened_ready,
                (true, false) => &mut self.large_ready,
                (false, _) => &mut self.small_ready,
            };
            ready.insert(relation.rank(relid));
        }
        if relation.left == 0 {
            let bytes = relation.bytes;
            let builds = relation.builds.iter().map(|task_id| (bytes, Reverse(*task_id)));
            self.builds_ready.extend(builds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Chunk, Work};

    fn copy(task_id: u64, relid: u32, size_bytes: u64) -> Task {
        let chunk = Chunk { first_block: 0, end_block: None, bytes: size_bytes };
        Task {
            task_id,
            relid,
            snapshot_epoch: 1,
            stage: COPY_STAGE,
            size_bytes,
            work: Work::Copy(chunk),
        }
    }

    fn build(task_id: u64, relid: u32, stage: i32) -> Task {
        let work = Work::Build { object: "i".into(), statements: vec![] };
        Task { task_id, relid, snapshot_epoch: 1, stage, size_bytes: 0, work }
    }

    fn take(queue: &mut Queue) -> Option<u64> {
        let next = queue.next()?;
        queue.granted(next);
        Some(next)
    }

    #[test]
    fn a_build_waits_for_the_last_chunk_of_its_table_alone() {
        let mut queue = Queue::new(4);
        for task in [copy(1, 10, 50), copy(2, 10, 50), copy(3, 20, 10), build(4, 10, 1)] {
            queue.insert(task);
        }
        assert_eq!(take(&mut queue), Some(1));
        assert_eq!(take(&mut queue), Some(2));
        assert_eq!(take(&mut queue), Some(3));
        assert_eq!(take(&mut queue), None);
        queue.remove(1);
        assert_eq!(take(&mut queue), None);
        queue.remove(2);
        assert_eq!(take(&mut queue), Some(4));
    }

    #[test]
    fn a_later_stage_waits_for_all_of_the_earlier_ones() {
        let mut queue = Queue::new(4);
        for task in [copy(1, 10, 5), build(2, 10, 1), build(3, 10, 2)] {
            queue.insert(task);
        }
        assert_eq!(take(&mut queue), Some(1));
        queue.remove(1);
        assert_eq!(take(&mut queue), Some(2));
        assert_eq!(take(&mut queue), None);
        queue.remove(2);
        assert_eq!(take(&mut queue), Some(3));
        queue.returned(3);
        assert_eq!(take(&mut queue), Some(3));
    }

    #[test]
    fn no_more_large_tables_are_open_than_allowed() {
        let mut queue = Queue::new(1);
        for (task_id, relid) in [(1, 10), (2, 10), (3, 20), (4, 20)] {
            queue.insert(copy(task_id, relid, u64::from(relid)));
        }
        assert_eq!(take(&mut queue), Some(3));
        assert_eq!(take(&mut queue), Some(4));
        assert_eq!(take(&mut queue), None);
        assert_eq!(queue.bytes_at_risk(), 40);
    }

    #[test]
    fn a_build_waits_again_when_its_table_is_copied_again() {
        let mut queue = Queue::new(4);
        for task in [build(1, 10, 1), copy(2, 10, 5)] {
            queue.insert(task);
        }
        queue.remove(2);
        assert_eq!(queue.next(), Some(1));
        queue.insert(copy(3, 10, 5));
        assert_eq!(take(&mut queue), Some(3));
        assert_eq!(take(&mut queue), None);
    }

    #[test]
    fn a_refresh_waits_until_it_is_allowed() {
        let mut queue = Queue::new(4);
        let work = Work::Refresh { object: "v".into(), statements: vec![] };
        queue.insert(Task { work, ..build(1, 0, REFRESH_STAGE) });
        assert_eq!(queue.next(), None);
        queue.allow_refresh();
        assert_eq!(take(&mut queue), Some(1));
    }

    #[test]
    fn a_table_that_is_copied_again_comes_before_larger_ones() {
        let mut queue = Queue::new(4);
        queue.insert(copy(1, 10, 500));
        queue.insert(Task { snapshot_epoch: 2, ..copy(2, 20, 5) });
        assert_eq!(take(&mut queue), Some(2));
        assert_eq!(take(&mut queue), Some(1));
    }

    /// With a walk over the tasks at each grant this took an hour.
    #[test]
    fn a_hundred_thousand_tables_are_granted_in_seconds() {
        const TABLES: u32 = 100_000;
        let mut queue = Queue::new(4);
        for relid in 1..=TABLES {
            queue.insert(copy(u64::from(relid), relid, u64::from(relid % 977)));
            queue.insert(build(u64::from(relid + TABLES), relid, 1));
        }
        let begun = std::time::Instant::now();
        let mut granted = 0;
        while let Some(task_id) = take(&mut queue) {
            granted += 1;
            if granted % 1000 == 0 {
                assert!(queue.bytes_at_risk() <= 977);
            }
            queue.remove(task_id);
        }
        assert_eq!(granted, 2 * TABLES);
        assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    }
}

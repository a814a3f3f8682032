//! Which task is granted next.
//!
//! Largest table first; few large tables open at once, so that one loss of the snapshot costs
//! little; builds of a table as soon as its last chunk is in.

use super::{COPY_STAGE, REFRESH_STAGE, TABLE_BUILD_STAGE, Task, Work};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The tasks that are not finished, and which of them may run now.
#[derive(Debug, Default)]
pub struct Queue {
    open: BTreeMap<u64, Task>,
    granted: HashSet<u64>,
    /// Copy tasks of a relation that are not finished.
    copies: HashMap<u32, usize>,
    /// Bytes of a relation: the sum over all its chunks, finished ones too.
    relation_bytes: HashMap<u32, u64>,
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
        if task.stage == COPY_STAGE {
            *self.copies.entry(task.relid).or_default() += 1;
            *self.relation_bytes.entry(task.relid).or_default() += task.size_bytes;
        }
        self.open.insert(task.task_id, task);
    }

    pub fn get(&self, task_id: u64) -> Option<&Task> {
        self.open.get(&task_id)
    }

    /// Lets tasks of [`REFRESH_STAGE`] run.
    pub fn allow_refresh(&mut self) {
        self.refresh = true;
    }

    pub fn granted(&mut self, task_id: u64) {
        self.granted.insert(task_id);
    }

    /// Back to ready.
    pub fn returned(&mut self, task_id: u64) {
        self.granted.remove(&task_id);
    }

    /// Takes a task out: finished, or replaced.
    pub fn remove(&mut self, task_id: u64) -> Option<Task> {
        let task = self.open.remove(&task_id)?;
        self.granted.remove(&task_id);
        if let Some(count) = self.stages.get_mut(&task.stage) {
            *count -= 1;
        }
        if task.stage == COPY_STAGE
            && let Some(count) = self.copies.get_mut(&task.relid)
        {
            *count -= 1;
        }
        Some(task)
    }

    /// Tasks of `stage` and below that are not finished.
    pub fn unfinished_through(&self, stage: i32) -> usize {
        self.stages.range(..=stage).map(|(_, count)| count).sum()
    }

    pub fn copies_left(&self, relid: u32) -> usize {
        self.copies.get(&relid).copied().unwrap_or(0)
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
        let lowest = self.stages.iter().find(|(_, count)| **count > 0).map(|(stage, _)| *stage)?;
        let ready = self.open.values().filter(|task| !self.granted.contains(&task.task_id));
        let open_large = self.open_large();
        let mut best: Option<(&Task, (u8, u64))> = None;
        for task in ready {
            let rank = match &task.work {
                Work::Refresh { .. } if !self.refresh || lowest < REFRESH_STAGE => continue,
                Work::Build { .. } | Work::Refresh { .. } => {
                    let free = if task.stage == TABLE_BUILD_STAGE {
                        self.copies_left(task.relid) == 0
                    } else {
                        task.stage <= lowest
                    };
                    if !free {
                        continue;
                    }
                    (1, self.relation_bytes.get(&task.relid).copied().unwrap_or(0))
                }
                Work::Copy(_) => {
                    let large = self.copies_left(task.relid) >= LARGE;
                    if large
                        && !open_large.contains(&task.relid)
                        && open_large.len() >= self.max_open_tables
                    {
                        continue;
                    }
                    let opened = u64::from(open_large.contains(&task.relid));
                    // An opened table is finished first; then the largest.
                    (0, (opened << 62) | self.relation_bytes.get(&task.relid).copied().unwrap_or(0))
                }
            };
            if best.is_none_or(|(_, best_rank)| rank > best_rank) {
                best = Some((task, rank));
            }
        }
        best.map(|(task, _)| task.task_id)
    }

    /// Large relations of which a chunk was granted or finished and that are not done.
    fn open_large(&self) -> HashSet<u32> {
        let mut open = HashSet::new();
        let mut seen: HashMap<u32, u64> = HashMap::new();
        for task in self.open.values().filter(|task| task.stage == COPY_STAGE) {
            *seen.entry(task.relid).or_default() += task.size_bytes;
            if self.granted.contains(&task.task_id) && self.copies_left(task.relid) >= LARGE {
                open.insert(task.relid);
            }
        }
        for (relid, left) in seen {
            let begun = self.relation_bytes.get(&relid).is_some_and(|all| *all > left);
            if begun && self.copies_left(relid) >= LARGE {
                open.insert(relid);
            }
        }
        open
    }

    /// Bytes of relations that are begun and not done: what a lost snapshot would cost.
    pub fn bytes_at_risk(&self) -> u64 {
        let mut at_risk = 0;
        for (relid, all) in &self.relation_bytes {
            let left = self.copies_left(*relid);
            if left == 0 {
                continue;
            }
            let open: u64 = self
                .open
                .values()
                .filter(|task| task.stage == COPY_STAGE && task.relid == *relid)
                .filter(|task| !self.granted.contains(&task.task_id))
                .map(|task| task.size_bytes)
                .sum();
            at_risk += all - open.min(*all);
        }
        at_risk
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Chunk;

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
}

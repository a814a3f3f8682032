use super::*;
use format::{HEADER_BYTES, SEGMENT_HEADER_BYTES};
use pg::pgoutput::Commit;
use proptest::prelude::*;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;
use tempfile::TempDir;

const LIMIT_BYTES: u64 = 1 << 30;
const START: u64 = 100;

fn identity() -> SpoolIdentity {
    SpoolIdentity {
        spool_id: "5".repeat(32),
        system_id: "7000".to_owned(),
        timeline: 1,
        slot: "s".to_owned(),
        database: "d".to_owned(),
        consistent_point: PgLsn::from(START),
    }
}

fn new_spool(limit_bytes: u64) -> (TempDir, Spool) {
    let dir = TempDir::new().unwrap();
    let spool = Spool::create(dir.path(), identity(), limit_bytes).unwrap();
    (dir, spool)
}

fn change(text: &str) -> Item {
    Item::Change(format!("I{text}").into())
}

fn relation(relid: u8, text: &str) -> Item {
    let mut bytes = vec![b'R', 0, 0, 0, relid];
    bytes.extend_from_slice(text.as_bytes());
    Item::Relation(bytes.into())
}

fn begin(end_lsn: u64) -> Begin {
    Begin {
        xid: u32::try_from(end_lsn).unwrap(),
        end_lsn: PgLsn::from(end_lsn),
        commit_lsn: PgLsn::from(end_lsn - 1),
        commit_time_us: 5,
        bytes: 0,
    }
}

fn transaction(end_lsn: u64, changes: &[Item]) -> Vec<Item> {
    let mut items = vec![Item::Begin(begin(end_lsn))];
    items.extend_from_slice(changes);
    items.push(Item::Commit { end_lsn: PgLsn::from(end_lsn) });
    items
}

/// Everything up to the spool's end, sizes left out.
async fn read_all(spool: &Spool, after: u64) -> Vec<Item> {
    let mut reader = spool.reader(PgLsn::from(after));
    let mut items = Vec::new();
    let patience = Duration::from_millis(300);
    while let Ok(item) = tokio::time::timeout(patience, reader.next()).await {
        items.push(match item.unwrap() {
            Item::Begin(begin) => Item::Begin(Begin { bytes: 0, ..begin }),
            item => item,
        });
    }
    items
}

fn ends(items: &[Item]) -> Vec<u64> {
    let end = |item: &Item| match item {
        Item::Commit { end_lsn } => Some(u64::from(*end_lsn)),
        _ => None,
    };
    items.iter().filter_map(end).collect()
}

fn last_segment(dir: &Path) -> PathBuf {
    let mut paths: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "seg"))
        .collect();
    paths.sort();
    paths.pop().unwrap()
}

fn count_files(dir: &Path, extension: &str) -> usize {
    fs::read_dir(dir)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|e| e == extension))
        .count()
}

/// Streams `changes` (sub xid, text) as transaction `xid`, aborts `aborted`, commits.
fn stream(writer: &mut Writer, xid: u32, changes: &[(u32, Bytes)], aborted: &[u32], end_lsn: u64) {
    let mut pending = Pending::new(xid, Delivery::Streamed);
    for (sub_xid, body) in changes {
        pending.push(writer, *sub_xid, (b'I', body)).unwrap();
        pending.pause(writer).unwrap();
    }
    aborted.iter().for_each(|sub_xid| pending.abort(*sub_xid));
    let commit = Commit {
        commit_lsn: PgLsn::from(end_lsn - 1),
        end_lsn: PgLsn::from(end_lsn),
        commit_time_us: 5,
    };
    assert!(writer.commit(pending, &commit).unwrap());
}

#[tokio::test]
async fn what_was_written_is_read_again_also_after_opening() {
    let (dir, spool) = new_spool(LIMIT_BYTES);
    let mut items = transaction(110, &[relation(1, "t"), change("a"), change("b")]);
    items.push(Item::Position(PgLsn::from(115)));
    items.extend(transaction(120, &[change("c")]));
    spool.append(&items).unwrap();
    assert_eq!(spool.spooled_lsn(), PgLsn::from(120));
    assert_eq!(read_all(&spool, START).await, items);
    drop(spool);
    let spool = Spool::open(dir.path(), LIMIT_BYTES).unwrap();
    assert_eq!(spool.spooled_lsn(), PgLsn::from(120));
    assert_eq!(spool.identity(), &identity());
    assert_eq!(read_all(&spool, START).await, items);
}

#[tokio::test]
async fn a_reader_that_skips_transactions_gets_their_relations() {
    let (_dir, spool) = new_spool(LIMIT_BYTES);
    spool.append(&transaction(110, &[relation(1, "t"), change("a")])).unwrap();
    spool.append(&transaction(120, &[change("b")])).unwrap();
    let mut expected = vec![relation(1, "t")];
    expected.extend(transaction(120, &[change("b")]));
    assert_eq!(read_all(&spool, 110).await, expected);
}

#[tokio::test]
async fn a_reader_waits_and_a_cancelled_wait_loses_nothing() {
    let (_dir, spool) = new_spool(LIMIT_BYTES);
    let mut reader = spool.reader(PgLsn::from(START));
    for end_lsn in 101..140_u64 {
        for _ in 0..3 {
            let wait = tokio::time::timeout(Duration::from_micros(50), reader.next());
            assert!(wait.await.is_err());
        }
        spool.append(&transaction(end_lsn, &[change("a")])).unwrap();
        let mut items = Vec::new();
        while items.len() < 3 {
            let wait = tokio::time::timeout(Duration::from_micros(20), reader.next());
            if let Ok(item) = wait.await {
                items.push(item.unwrap());
            }
        }
        assert_eq!(ends(&items), [end_lsn]);
    }
}

#[tokio::test]
async fn a_transaction_seen_twice_is_kept_once() {
    let (_dir, spool) = new_spool(LIMIT_BYTES);
    spool.append(&transaction(110, &[change("a")])).unwrap();
    spool.append(&transaction(110, &[relation(1, "t"), change("a")])).unwrap();
    spool.append(&transaction(120, &[change("b")])).unwrap();
    let items = read_all(&spool, START).await;
    assert_eq!(ends(&items), [110, 120]);
    // The server counts the relation of the second one as sent.
    assert!(items.contains(&relation(1, "t")));
}

#[tokio::test]
async fn aborted_subtransactions_are_left_out_in_memory_and_in_a_file() {
    let (dir, spool) = new_spool(LIMIT_BYTES);
    let mut writer = spool.writer(CancellationToken::new()).unwrap();
    let small = |n: u32| (n, Bytes::from(format!("small {n}")));
    let large = |n: u32| (n, Bytes::from(vec![u8::try_from(n).unwrap(); 70_000]));
    stream(&mut writer, 1, &[small(1), small(2), small(1), small(3)], &[2, 3], 110);
    assert_eq!(count_files(dir.path(), "txn"), 0);
    stream(&mut writer, 4, &[large(4), large(5), small(4), small(6)], &[5, 6], 120);
    assert_eq!(count_files(dir.path(), "txn"), 1);
    writer.sync().unwrap();
    drop(writer);
    let mut spool = spool;
    for _ in 0..2 {
        let changes: Vec<(u8, usize)> = read_all(&spool, START)
            .await
            .iter()
            .filter_map(|item| match item {
                Item::Change(bytes) => Some((bytes[bytes.len() - 1], bytes.len())),
                _ => None,
            })
            .collect();
        assert_eq!(changes, [(b'1', 8), (b'1', 8), (4, 70_001), (b'4', 8)]);
        drop(spool);
        spool = Spool::open(dir.path(), LIMIT_BYTES).unwrap();
    }
}

#[tokio::test]
async fn what_never_committed_is_gone_with_the_next_connection() {
    let (dir, spool) = new_spool(LIMIT_BYTES);
    let writer = spool.writer(CancellationToken::new()).unwrap();
    let mut pending = Pending::new(7, Delivery::Streamed);
    pending.push(&writer, 7, (b'I', &Bytes::from(vec![1; 300_000]))).unwrap();
    assert_eq!(count_files(dir.path(), "txn"), 1);
    assert!(matches!(spool.writer(CancellationToken::new()), Err(Error::Busy)));
    drop(writer);
    let mut writer = spool.writer(CancellationToken::new()).unwrap();
    assert_eq!(count_files(dir.path(), "txn"), 0);
    let before = spool.bytes();
    // The same xid comes again, whole.
    stream(&mut writer, 7, &[(7, Bytes::from(vec![2; 300_000]))], &[], 110);
    let mut pending = Pending::new(8, Delivery::Streamed);
    pending.push(&writer, 8, (b'I', &Bytes::from(vec![1; 300_000]))).unwrap();
    pending.discard(&writer).unwrap();
    writer.sync().unwrap();
    assert_eq!(count_files(dir.path(), "txn"), 1);
    assert_eq!(ends(&read_all(&spool, START).await), [110]);
    drop(writer);
    spool.append(&transaction(120, &[])).unwrap();
    spool.release(PgLsn::from(110));
    assert_eq!(count_files(dir.path(), "txn"), 0);
    assert!(spool.bytes() < before + 2_000, "{} bytes", spool.bytes());
    assert_eq!(ends(&read_all(&spool, 110).await), [120]);
}

#[tokio::test]
async fn unsynced_transactions_are_not_read_and_not_kept() {
    let (dir, spool) = new_spool(LIMIT_BYTES);
    spool.append(&transaction(110, &[change("a")])).unwrap();
    let mut writer = spool.writer(CancellationToken::new()).unwrap();
    let large = Bytes::from(vec![3; 300_000]);
    stream(&mut writer, 1, &[(1, large.clone())], &[], 120);
    let mut pending = Pending::new(2, Delivery::Whole);
    pending.push(&writer, 2, (b'I', &large)).unwrap();
    let (commit_lsn, end_lsn) = (PgLsn::from(129), PgLsn::from(130));
    writer.commit(pending, &Commit { commit_lsn, end_lsn, commit_time_us: 0 }).unwrap();
    assert_eq!(ends(&read_all(&spool, START).await), [110]);
    drop(writer);
    spool.append(&transaction(125, &[change("c")])).unwrap();
    assert_eq!(ends(&read_all(&spool, START).await), [110, 125]);
    assert_eq!(count_files(dir.path(), "txn"), 0);
}

#[tokio::test]
async fn a_torn_tail_is_passed_over_and_written_over() {
    let (dir, spool) = new_spool(LIMIT_BYTES);
    spool.append(&transaction(110, &[change("a")])).unwrap();
    spool.append(&transaction(120, &[change("b")])).unwrap();
    drop(spool);
    let path = last_segment(dir.path());
    let bytes = fs::metadata(&path).unwrap().len();
    File::options().write(true).open(&path).unwrap().set_len(bytes - 3).unwrap();
    let spool = Spool::open(dir.path(), LIMIT_BYTES).unwrap();
    assert_eq!(spool.spooled_lsn(), PgLsn::from(110));
    // Opening cuts nothing: first the source is asked what was confirmed.
    assert_eq!(fs::metadata(&path).unwrap().len(), bytes - 3);
    spool.append(&transaction(130, &[change("c")])).unwrap();
    assert_eq!(ends(&read_all(&spool, START).await), [110, 130]);
    drop(spool);
    let spool = Spool::open(dir.path(), LIMIT_BYTES).unwrap();
    assert_eq!(ends(&read_all(&spool, START).await), [110, 130]);
}

#[tokio::test]
async fn damage_below_the_end_is_a_fault_not_an_item() {
    let (dir, spool) = new_spool(LIMIT_BYTES);
    spool.append(&transaction(110, &[change("a")])).unwrap();
    spool.append(&transaction(120, &[change("b")])).unwrap();
    let file = File::options().write(true).open(last_segment(dir.path())).unwrap();
    file.write_all_at(b"x", (SEGMENT_HEADER_BYTES + HEADER_BYTES) as u64).unwrap();
    let error = spool.reader(PgLsn::from(START)).next().await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    // After a crash it looks like a torn tail: the end falls below what was confirmed, and the
    // check before the next stream says CHANGES_LOST.
    drop(spool);
    let spool = Spool::open(dir.path(), LIMIT_BYTES).unwrap();
    assert_eq!(spool.spooled_lsn(), PgLsn::from(START));
}

#[tokio::test]
async fn segments_roll_begin_with_relations_and_are_released() {
    let (dir, spool) = new_spool(800_000);
    let large = Item::Change((0..60_000_u32).flat_map(u32::to_be_bytes).collect::<Vec<_>>().into());
    for end_lsn in 101..=106 {
        let first = if end_lsn == 101 { vec![relation(1, "t")] } else { vec![] };
        let changes = [first, vec![large.clone()]].concat();
        spool.append(&transaction(end_lsn, &changes)).unwrap();
    }
    assert!(count_files(dir.path(), "seg") >= 6);
    assert_eq!(ends(&read_all(&spool, START).await), [101, 102, 103, 104, 105, 106]);
    assert_eq!(read_all(&spool, 104).await[0], relation(1, "t"));
    let before = spool.bytes();
    spool.release(PgLsn::from(104));
    assert!(spool.bytes() < before / 2);
    assert_eq!(ends(&read_all(&spool, 104).await), [105, 106]);
    let error = spool.reader(PgLsn::from(102)).next().await.unwrap_err();
    assert!(matches!(error, Error::Released { .. }), "{error}");
    // A segment whose making a crash cut short is none.
    drop(spool);
    let last = last_segment(dir.path());
    let number = u64::from_str_radix(last.file_stem().unwrap().to_str().unwrap(), 16).unwrap();
    fs::write(dir.path().join(recovery::segment_name(number + 1)), b"half a head").unwrap();
    let spool = Spool::open(dir.path(), 800_000).unwrap();
    assert_eq!(spool.spooled_lsn(), PgLsn::from(106));
    assert_eq!(read_all(&spool, 106).await, [relation(1, "t")]);
    spool.append(&transaction(107, &[large])).unwrap();
    assert_eq!(ends(&read_all(&spool, 105).await), [106, 107]);
}

#[test]
fn a_full_spool_says_so_and_goes_on_when_released() {
    let (_dir, spool) = new_spool(200_000);
    let mut writer = spool.writer(CancellationToken::new()).unwrap();
    let body: Bytes = (0..60_000_u32).flat_map(u32::to_be_bytes).collect::<Vec<_>>().into();
    stream(&mut writer, 1, &[(1, body)], &[], 110);
    let space = spool.space();
    assert_eq!(*space.borrow(), Space::Free);
    let waiter = std::thread::spawn(move || writer.wait_for_space());
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while *space.borrow() != Space::Full {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    // What was taken in before is durable, so that it can be applied.
    assert_eq!(spool.spooled_lsn(), PgLsn::from(110));
    spool.release(PgLsn::from(110));
    waiter.join().unwrap().unwrap();
    assert_eq!(*space.borrow(), Space::Free);
}

/// One transaction larger than the limit would otherwise wait for ever for its own commit.
#[test]
fn a_transaction_in_progress_beyond_the_limit_is_taken_in_and_said() {
    let (_dir, spool) = new_spool(200_000);
    let mut writer = spool.writer(CancellationToken::new()).unwrap();
    let body: Bytes = (0..60_000_u32).flat_map(u32::to_be_bytes).collect::<Vec<_>>().into();
    let (tell, told) = std::sync::mpsc::channel();
    let receiving = std::thread::spawn(move || {
        let mut pending = Pending::new(7, Delivery::Streamed);
        for _ in 0..5 {
            writer.wait_for_space().unwrap();
            pending.push(&writer, 7, (b'I', &body)).unwrap();
            pending.pause(&writer).unwrap();
        }
        writer.wait_for_space().unwrap();
        tell.send(writer).unwrap();
    });
    let writer = told.recv_timeout(Duration::from_secs(10)).expect("it waits for ever");
    assert!(spool.bytes() > 200_000, "{} bytes", spool.bytes());
    assert_eq!(*spool.space().borrow(), Space::Exceeded);
    drop(writer);
    receiving.join().unwrap();
}

#[tokio::test]
async fn what_an_earlier_process_left_unsynced_is_synced_before_it_counts() {
    let (dir, spool) = new_spool(LIMIT_BYTES);
    spool.append(&transaction(110, &[change("a")])).unwrap();
    drop(spool);
    let spool = Spool::open(dir.path(), LIMIT_BYTES).unwrap();
    let marker = dir.path().join(append::FAIL_SYNC);
    fs::write(&marker, "").unwrap();
    let refused = spool.writer(CancellationToken::new());
    assert!(matches!(refused, Err(Error::Sync { .. })), "it would be confirmed");
    fs::remove_file(&marker).unwrap();
    drop(spool.writer(CancellationToken::new()).unwrap());
    assert_eq!(ends(&read_all(&spool, START).await), [110]);
}

#[test]
fn a_segment_that_is_closed_after_its_release_is_removed_then() {
    let (dir, spool) = new_spool(1_000_000);
    let mut writer = spool.writer(CancellationToken::new()).unwrap();
    let body: Bytes = (0..60_000_u32).flat_map(u32::to_be_bytes).collect::<Vec<_>>().into();
    let mut pending = Pending::new(1, Delivery::Whole);
    pending.push(&writer, 1, (b'I', &body)).unwrap();
    let (commit_lsn, end_lsn) = (PgLsn::from(109), PgLsn::from(110));
    writer.commit(pending, &Commit { commit_lsn, end_lsn, commit_time_us: 0 }).unwrap();
    // Applied as soon as it is durable, before the writer goes on to close the segment.
    spool.release(PgLsn::from(110));
    writer.sync().unwrap();
    assert_eq!(count_files(dir.path(), "seg"), 1);
    assert!(spool.bytes() < 1_000, "{} bytes", spool.bytes());
}

#[tokio::test]
async fn after_a_failed_sync_nothing_counts_and_the_log_is_cut_back() {
    let (dir, spool) = new_spool(LIMIT_BYTES);
    spool.append(&transaction(110, &[change("a")])).unwrap();
    let durable_bytes = fs::metadata(last_segment(dir.path())).unwrap().len();
    let marker = dir.path().join(append::FAIL_SYNC);
    let mut writer = spool.writer(CancellationToken::new()).unwrap();
    fs::write(&marker, "").unwrap();
    writer.append_items(&transaction(120, &[change("b")])).unwrap_err();
    fs::remove_file(&marker).unwrap();
    // Not tried again, though it would now succeed.
    assert!(matches!(writer.sync(), Err(Error::Stopped)));
    assert_eq!(spool.spooled_lsn(), PgLsn::from(110));
    drop(writer);
    let writer = spool.writer(CancellationToken::new()).unwrap();
    assert_eq!(fs::metadata(last_segment(dir.path())).unwrap().len(), durable_bytes);
    drop(writer);
    spool.append(&transaction(120, &[change("b")])).unwrap();
    assert_eq!(ends(&read_all(&spool, START).await), [110, 120]);
}

/// A file system of its own; unmounted when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// None where we have no right to mount.
    fn new(size: &str) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .stderr(std::process::Stdio::null())
            .status();
        status.is_ok_and(|status| status.success()).then(|| Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_says_so_and_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::new("1m") else {
        eprintln!("skipped: no right to mount a small disk");
        return;
    };
    let spool = Spool::create(&disk.0.path().join("spool"), identity(), LIMIT_BYTES).unwrap();
    let ballast = disk.0.path().join("ballast");
    fs::write(&ballast, vec![0; 700_000]).unwrap();
    let mut writer = spool.writer(CancellationToken::new()).unwrap();
    let space = spool.space();
    let receiving = std::thread::spawn(move || {
        for xid in 101..=103_u32 {
            let body: Vec<u8> = (0..40_000_u32).flat_map(|i| (i ^ 0x5555).to_be_bytes()).collect();
            stream(&mut writer, xid, &[(xid, body.into())], &[], xid.into());
            writer.sync().unwrap();
            writer.wait_for_space().unwrap();
        }
    });
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while *space.borrow() != Space::DiskFull {
        assert!(std::time::Instant::now() < deadline && !receiving.is_finished());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fs::remove_file(&ballast).unwrap();
    receiving.join().unwrap();
    assert_eq!(*space.borrow(), Space::Free);
    assert_eq!(ends(&read_all(&spool, START).await), [101, 102, 103]);
}

#[test]
fn a_stopped_writer_does_not_wait_for_space() {
    let (_dir, spool) = new_spool(1);
    let stop = CancellationToken::new();
    let mut writer = spool.writer(stop.clone()).unwrap();
    stop.cancel();
    assert!(matches!(writer.wait_for_space(), Err(Error::Stopped)));
}

#[test]
fn one_process_at_a_time_and_one_spool_in_a_directory() {
    let (dir, spool) = new_spool(LIMIT_BYTES);
    assert!(matches!(Spool::open(dir.path(), 1), Err(Error::Locked { .. })));
    drop(spool);
    let again = Spool::create(dir.path(), identity(), 1);
    assert!(matches!(again, Err(Error::Exists { .. })));
    Spool::remove(dir.path()).unwrap();
    assert!(matches!(Spool::open(dir.path(), 1), Err(Error::Missing { .. })));
    Spool::create(dir.path(), identity(), 1).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Any cut of the last segment leaves a prefix of the transactions, and writing goes on.
    #[test]
    fn a_cut_anywhere_leaves_a_prefix(cut: prop::sample::Index, count in 1_u64..6) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (dir, spool) = new_spool(LIMIT_BYTES);
        for end_lsn in 1..=count {
            spool.append(&transaction(START + end_lsn, &[change("a")])).unwrap();
        }
        drop(spool);
        let path = last_segment(dir.path());
        let bytes = usize::try_from(fs::metadata(&path).unwrap().len()).unwrap();
        let keep = SEGMENT_HEADER_BYTES + cut.index(bytes - SEGMENT_HEADER_BYTES);
        File::options().write(true).open(&path).unwrap().set_len(keep as u64).unwrap();
        let spool = Spool::open(dir.path(), LIMIT_BYTES).unwrap();
        let kept = u64::from(spool.spooled_lsn()) - START;
        prop_assert!(kept < count);
        spool.append(&transaction(START + 50, &[change("z")])).unwrap();
        let expected: Vec<u64> = (1..=kept).map(|i| START + i).chain([START + 50]).collect();
        prop_assert_eq!(ends(&runtime.block_on(read_all(&spool, START))), expected);
    }
}

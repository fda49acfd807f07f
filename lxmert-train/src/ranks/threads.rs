//! How many threads a rank should compute with, by the cores that it may run on.

use super::World;
use crate::Result;
use std::collections::BTreeMap;

/// Where a rank runs: its machine, and the cores that the system lets it run on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seat {
    host: String,
    cores: Vec<usize>,
}

/// Threads for this rank: its share of the cores that it may run on, unless `asked`, which is what `--threads` says. Also a
/// warning, on rank 0, if there are more threads than cores. In a world of one, `asked` itself.
///
/// # Errors
/// As [`World::gather`].
pub fn share_of_cores(world: World, asked: Option<u16>) -> Result<(Option<u16>, Option<String>)> {
    if world.is_alone() {
        return Ok((asked, None));
    }
    let own = here();
    let text = format!("{}\n{}", own.host, own.cores.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
    let seats: Vec<Seat> = world.gather(Ok(text.into_bytes()))?.iter().map(|bytes| seat_of(bytes)).collect();
    let warning = if world.is_first() { crowded(&seats, asked) } else { None };
    Ok((asked.or(Some(share(&seats, world.rank()))), warning))
}

fn seat_of(bytes: &[u8]) -> Seat {
    let text = String::from_utf8_lossy(bytes);
    let (host, cores) = text.split_once('\n').unwrap_or((&text, ""));
    Seat { host: host.into(), cores: cores.split(',').filter_map(|core| core.parse().ok()).collect() }
}

/// This process's seat. Where the system does not say which cores are its own, they are all.
fn here() -> Seat {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    let mut cores = listed(list.trim());
    if cores.is_empty() {
        cores = (0..std::thread::available_parallelism().map_or(1, usize::from)).collect();
    }
    Seat { host: read("/proc/sys/kernel/hostname").trim().to_string(), cores }
}

/// The numbers of a list such as `0-3,8`.
fn listed(text: &str) -> Vec<usize> {
    let range = |part: &str| -> Option<std::ops::RangeInclusive<usize>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// Of each core of a machine, how many ranks may run on it.
fn users(seats: &[Seat], host: &str) -> BTreeMap<usize, usize> {
    let mut users = BTreeMap::new();
    for seat in seats.iter().filter(|seat| seat.host == host) {
        seat.cores.iter().for_each(|core| *users.entry(*core).or_insert(0) += 1);
    }
    users
}

/// A rank's share of its cores: of a core that several ranks may run on, a part. At least 1.
fn share(seats: &[Seat], rank: usize) -> u16 {
    let users = users(seats, &seats[rank].host);
    let parts: f64 = seats[rank].cores.iter().map(|core| 1.0 / users[core] as f64).sum();
    (parts + 1e-6).clamp(1.0, 1024.0) as u16
}

/// The warning where threads outnumber cores: the first rank that has more threads than cores, or the first machine whose
/// ranks have.
fn crowded(seats: &[Seat], asked: Option<u16>) -> Option<String> {
    let threads = |rank: usize| usize::from(asked.unwrap_or_else(|| share(seats, rank)));
    for (rank, seat) in seats.iter().enumerate() {
        if threads(rank) > seat.cores.len() {
            return Some(format!(
                "rank {rank} on {} has {} threads but is bound to {} of the machine's cores: start with `mpirun --bind-to none`, or \
                 with fewer --threads",
                seat.host,
                threads(rank),
                seat.cores.len()
            ));
        }
    }
    for seat in seats {
        let ranks: Vec<usize> = (0..seats.len()).filter(|rank| seats[*rank].host == seat.host).collect();
        let (all, cores) = (ranks.iter().map(|rank| threads(*rank)).sum::<usize>(), users(seats, &seat.host).len());
        if all > cores {
            return Some(format!(
                "{} ranks on {} have {all} threads on {cores} cores: start fewer ranks there, or with fewer --threads; if the \
                 machine has more cores, with `mpirun --bind-to none`",
                ranks.len(),
                seat.host
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(seats: &[(&str, &str)]) -> Vec<Seat> {
        seats.iter().map(|(host, cores)| Seat { host: (*host).into(), cores: listed(cores) }).collect()
    }

    #[test]
    fn cores_are_shared_by_the_ranks_that_may_run_on_them() {
        assert_eq!(listed("0-3,8"), [0, 1, 2, 3, 8]);
        // Two machines without bindings, two and one rank.
        let free = seats(&[("a", "0-7"), ("a", "0-7"), ("b", "0-7")]);
        assert_eq!([0, 1, 2].map(|rank| share(&free, rank)), [4, 4, 8]);
        assert_eq!(crowded(&free, None), None);
        // Bound to sockets of four cores; three ranks on one.
        let bound = seats(&[("a", "0-3"), ("a", "4-7"), ("a", "0-3"), ("a", "0-3")]);
        assert_eq!([0, 1].map(|rank| share(&bound, rank)), [1, 4]);
        // Threads pass through bytes.
        assert_eq!(seat_of(b"a\n0,1"), Seat { host: "a".into(), cores: vec![0, 1] });
    }

    #[test]
    fn threads_that_outnumber_cores_are_said() {
        let core = seats(&[("a", "0"), ("a", "1")]);
        assert_eq!(crowded(&core, None), None);
        assert!(crowded(&core, Some(2)).unwrap().contains("rank 0 on a has 2 threads but is bound to 1"));
        let over = seats(&[("a", "0-1"), ("a", "0-1"), ("a", "0-1")]);
        assert!(crowded(&over, None).unwrap().contains("3 ranks on a have 3 threads on 2 cores"));
        let same = seats(&[("a", "0"), ("a", "0")]);
        assert!(crowded(&same, None).unwrap().contains("2 threads on 1 cores"));
    }
}

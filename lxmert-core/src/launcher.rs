//! What launchers (mpirun, srun, a Slurm array, a Kubernetes indexed job) tell a process about its place among others.

use crate::{Error, Result};

/// A process's place among those that were started together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Counted from 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

/// Variables that hold a process's rank and the number of ranks, by launcher: Open MPI, MVAPICH2, MPICH and Intel MPI, and
/// `srun`. `srun` comes last: it starts the daemons of the others too.
const RANKS: [(&str, &str); 4] = [
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
];

/// This process's place among the ranks of an MPI job or of an `srun` step; none outside of one. `variable` looks an
/// environment variable up.
pub fn rank(variable: impl Fn(&str) -> Option<String>) -> Option<Place> {
    let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
    RANKS.iter().find_map(|(index, count)| {
        let (index, count) = (number(index)?, number(count)?);
        (index < count).then_some(Place { index, count })
    })
}

/// This process's place among all that do one job: the tasks of a Slurm array or of a Kubernetes indexed job, and within
/// each its MPI ranks.
///
/// # Errors
/// When no launcher says, or an array has gaps, so that its tasks are not all that there are.
pub fn place(variable: impl Fn(&str) -> Option<String>) -> Result<Place> {
    let task = match slurm_task(&variable)? {
        Some(place) => Some(place),
        None => kubernetes_pod(&variable)?,
    };
    match (task, rank(&variable)) {
        (None, None) => Err(Error::Argument(
            "no Slurm array, MPI launcher or Kubernetes indexed job says which part this process is; name it as K/N, \
             such as 2/8"
                .into(),
        )),
        (Some(place), None) | (None, Some(place)) => Ok(place),
        (Some(task), Some(rank)) => {
            Ok(Place { index: task.index * rank.count + rank.index, count: task.count * rank.count })
        }
    }
}

/// A variable's number, if it is set.
fn number(variable: &impl Fn(&str) -> Option<String>, name: &str) -> Result<Option<usize>> {
    let Some(text) = variable(name) else { return Ok(None) };
    text.trim().parse().map(Some).map_err(|_| Error::Argument(format!("{name} is '{text}', not a number")))
}

fn slurm_task(variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Place>> {
    let Some(id) = number(variable, "SLURM_ARRAY_TASK_ID")? else { return Ok(None) };
    let needed = |name: &str| {
        number(variable, name)?.ok_or_else(|| {
            Error::Argument(format!("SLURM_ARRAY_TASK_ID is set, but {name} is not; name the part as K/N"))
        })
    };
    let (first, last, count) =
        (needed("SLURM_ARRAY_TASK_MIN")?, needed("SLURM_ARRAY_TASK_MAX")?, needed("SLURM_ARRAY_TASK_COUNT")?);
    let step = number(variable, "SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
    // `--array=3` or `--array=1,3,7`, to do some tasks again, does not say how many there were.
    let whole = (first..=last).contains(&id) && (id - first).is_multiple_of(step) && (last - first) / step + 1 == count;
    if !whole {
        return Err(Error::Argument(format!(
            "the Slurm array is not a whole range: {count} tasks from {first} to {last}; name the part as K/N"
        )));
    }
    Ok(Some(Place { index: (id - first) / step, count }))
}

fn kubernetes_pod(variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Place>> {
    let Some(index) = number(variable, "JOB_COMPLETION_INDEX")? else { return Ok(None) };
    let count = number(variable, "JOB_COMPLETIONS")?.ok_or_else(|| {
        Error::Argument(
            "Kubernetes sets JOB_COMPLETION_INDEX but no variable for how many there are; set JOB_COMPLETIONS in the \
             container's env to the job's .spec.completions"
                .into(),
        )
    })?;
    if index >= count {
        return Err(Error::Argument(format!("JOB_COMPLETION_INDEX is {index}, but JOB_COMPLETIONS is {count}")));
    }
    Ok(Some(Place { index, count }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> std::result::Result<(usize, usize), String> {
        let get =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_string());
        place(get).map(|place| (place.index, place.count)).map_err(|error| error.to_string())
    }

    fn slurm<'a>(id: &'a str, first: &'a str, last: &'a str, count: &'a str) -> Vec<(&'a str, &'a str)> {
        let names = ["ID", "MIN", "MAX", "COUNT"].map(|name| match name {
            "ID" => "SLURM_ARRAY_TASK_ID",
            "MIN" => "SLURM_ARRAY_TASK_MIN",
            "MAX" => "SLURM_ARRAY_TASK_MAX",
            _ => "SLURM_ARRAY_TASK_COUNT",
        });
        names.into_iter().zip([id, first, last, count]).collect()
    }

    #[test]
    fn each_launchers_variables_are_read() {
        assert_eq!(of(&slurm("3", "1", "4", "4")), Ok((2, 4)));
        assert_eq!(of(&slurm("0", "0", "7", "8")), Ok((0, 8)));
        let mut steps = slurm("6", "0", "9", "4");
        steps.push(("SLURM_ARRAY_TASK_STEP", "3"));
        assert_eq!(of(&steps), Ok((2, 4)));
        assert_eq!(of(&[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "3")]), Ok((1, 3)));
        assert_eq!(of(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]), Ok((0, 2)));
        assert_eq!(of(&[("SLURM_PROCID", "4"), ("SLURM_STEP_NUM_TASKS", "8")]), Ok((4, 8)));
        assert_eq!(of(&[("JOB_COMPLETION_INDEX", "5"), ("JOB_COMPLETIONS", "6")]), Ok((5, 6)));
        // Two ranks in each of four tasks are eight processes; a batch script without `srun` is one.
        let mut both = slurm("3", "1", "4", "4");
        both.extend([("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")]);
        assert_eq!(of(&both), Ok((5, 8)));
        let mut script = slurm("3", "1", "4", "4");
        script.extend([("SLURM_PROCID", "0"), ("SLURM_NTASKS", "16")]);
        assert_eq!(of(&script), Ok((2, 4)));
    }

    #[test]
    fn what_no_launcher_says_is_refused() {
        assert!(of(&[]).unwrap_err().contains("name it as K/N"));
        assert!(of(&slurm("3", "3", "3", "1")).is_ok()); // one task: 1/1
        assert!(of(&slurm("3", "1", "7", "3")).unwrap_err().contains("not a whole range: 3 tasks from 1 to 7"));
        assert!(of(&[("JOB_COMPLETION_INDEX", "5")]).unwrap_err().contains("set JOB_COMPLETIONS"));
        assert!(of(&[("JOB_COMPLETION_INDEX", "x")]).unwrap_err().contains("'x'"));
    }
}

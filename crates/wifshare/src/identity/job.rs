//! Identifies the CI job of this process by the CI's variables.
//!
//! Sources: <https://docs.github.com/en/actions/reference/workflows-and-actions/variables> (also set by Gitea and
//! Forgejo), <https://docs.gitlab.com/ci/variables/predefined_variables/>,
//! <https://buildkite.com/docs/pipelines/configure/environment-variables>,
//! <https://circleci.com/docs/variables/>,
//! <https://support.atlassian.com/bitbucket-cloud/docs/variables-and-secrets/>,
//! <https://learn.microsoft.com/azure/devops/pipelines/build/variables>,
//! <https://www.jenkins.io/doc/book/pipeline/jenkinsfile/#using-environment-variables>.

use crate::environment::Environment;

/// A job, identified by its variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// The variables and their values.
    pub ids: Vec<(&'static str, String)>,
    /// Whether no other job has the same values. Then they alone decide which credential the job can use.
    pub is_unique: bool,
}

/// The variables with which a CI identifies a job.
struct Names {
    /// The job's id. If it is not set, the job does not run in this CI.
    job: &'static str,
    /// The other parts of its identity: for each, the first variable that is set.
    beside: &'static [&'static [&'static str]],
    /// Whether all of them together are unique to one job.
    is_unique: bool,
}

const CIS: [Names; 7] = [
    // The jobs of a matrix share these. GitHub's request URL distinguishes them.
    Names {
        job: "GITHUB_RUN_ID",
        beside: &[&["GITHUB_SERVER_URL"], &["GITHUB_RUN_ATTEMPT"], &["GITHUB_JOB"]],
        is_unique: false,
    },
    // Each GitLab instance has its own counter.
    Names { job: "CI_JOB_ID", beside: &[&["CI_SERVER_URL", "CI_SERVER_HOST"]], is_unique: true },
    Names { job: "BUILDKITE_JOB_ID", beside: &[], is_unique: true },
    Names { job: "CIRCLE_WORKFLOW_JOB_ID", beside: &[], is_unique: true },
    Names { job: "BITBUCKET_STEP_UUID", beside: &[], is_unique: true },
    // The id is the same in every run of a pipeline.
    Names {
        job: "SYSTEM_JOBID",
        beside: &[
            &["SYSTEM_COLLECTIONURI", "SYSTEM_TEAMFOUNDATIONCOLLECTIONURI"],
            &["SYSTEM_PLANID", "BUILD_BUILDID", "RELEASE_RELEASEID"],
        ],
        is_unique: true,
    },
    // The parallel branches of a build share it.
    Names { job: "JENKINS_URL", beside: &[&["BUILD_TAG"]], is_unique: false },
];

/// The job that these variables identify. Without such variables, it has no ids.
pub fn job(environment: &Environment) -> Job {
    let mut found = Job::default();
    let value = |name: &'static str| environment.text(name).map(|value| (name, value.to_owned()));
    for names in &CIS {
        let Some(own) = value(names.job) else { continue };
        let beside: Vec<_> = names.beside.iter().map(|part| part.iter().find_map(|name| value(name))).collect();
        found.is_unique |= names.is_unique && beside.iter().all(Option::is_some);
        found.ids.push(own);
        found.ids.extend(beside.into_iter().flatten());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(variables: &[(&str, &str)]) -> Job {
        job(&variables.iter().copied().collect())
    }

    #[test]
    fn job_ids_are_read_from_each_ci() {
        let (url, plan) = (("CI_SERVER_URL", "https://gitlab.example"), ("SYSTEM_PLANID", "p"));
        let collection = ("SYSTEM_COLLECTIONURI", "https://dev.azure.com/o/");
        for (variables, is_unique) in [
            (&[("GITHUB_RUN_ID", "1"), ("GITHUB_RUN_ATTEMPT", "1"), ("GITHUB_JOB", "test")][..], false),
            (&[("CI_JOB_ID", "1"), url], true),
            (&[("CI_JOB_ID", "1"), ("CI_SERVER_HOST", "gitlab.example")], true),
            (&[("CI_JOB_ID", "1")], false),
            (&[("BUILDKITE_JOB_ID", "1")], true),
            (&[("CIRCLE_WORKFLOW_JOB_ID", "1")], true),
            (&[("BITBUCKET_STEP_UUID", "{1}")], true),
            (&[("SYSTEM_JOBID", "1"), collection, plan], true),
            (&[("SYSTEM_JOBID", "1"), collection, ("BUILD_BUILDID", "7")], true),
            (&[("SYSTEM_JOBID", "1"), collection], false),
            (&[("SYSTEM_JOBID", "1"), plan], false),
            (&[("BUILD_TAG", "jenkins-a-1"), ("JENKINS_URL", "https://ci")], false),
        ] {
            let job = named(variables);
            assert_eq!((job.ids.len(), job.is_unique), (variables.len(), is_unique), "{variables:?}");
        }
        assert_eq!(named(&[("CI_SERVER_URL", "https://gitlab.example"), ("GITHUB_JOB", "x")]), Job::default());
        assert_eq!(named(&[("BUILDKITE_JOB_ID", " ")]), Job::default(), "blank counts as unset");
    }

    #[test]
    fn job_inside_a_job_has_the_ids_of_both() {
        let both = named(&[("GITHUB_RUN_ID", "1"), ("BUILDKITE_JOB_ID", "2")]);
        assert_eq!(both.ids, [("GITHUB_RUN_ID", "1".to_owned()), ("BUILDKITE_JOB_ID", "2".to_owned())]);
        assert!(both.is_unique);
    }
}

//! Several servers, each in a process of its own, that are the members of one cluster.

use keelson_client::Client;
use tempfile::TempDir;

use crate::patient;
use crate::process::{Launch, Process};

/// A cluster of processes. Dropping it kills them, and removes their directories.
#[derive(Debug)]
pub struct ProcessCluster {
    members: Vec<Process>,
    _dir: TempDir,
}

impl ProcessCluster {
    /// Starts one member a launch, and waits until all of them serve. They are named `m0`, `m1` and
    /// so on.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn start(launches: Vec<Launch>) -> anyhow::Result<ProcessCluster> {
        let mut cluster = ProcessCluster::prepared(launches, &[])?;
        cluster.spawn()?;
        for member in &mut cluster.members {
            member.wait_until_ready()?;
        }
        Ok(cluster)
    }

    /// Members that were not started yet. Beside them the cluster has `others`, each with its name
    /// and peer URL, which are somebody else's business.
    ///
    /// # Errors
    /// If there are no free ports, or no directory.
    pub fn prepared(
        launches: Vec<Launch>,
        others: &[(String, String)],
    ) -> anyhow::Result<ProcessCluster> {
        let dir = tempfile::tempdir()?;
        let mut members = Vec::new();
        for (number, launch) in launches.into_iter().enumerate() {
            let name = format!("m{number}");
            let data_dir = dir.path().join(&name);
            members.push(Process::prepared(launch.named(name), data_dir)?);
        }
        let own = members
            .iter()
            .map(|member| (member.name().to_owned(), member.peer_url()));
        let all: Vec<String> = own
            .chain(others.iter().cloned())
            .map(|(name, url)| format!("{name}={url}"))
            .collect();
        let all = all.join(",");
        for member in &mut members {
            member.set_initial_cluster(&all);
        }
        Ok(ProcessCluster { members, _dir: dir })
    }

    /// Starts all members, and waits for none.
    ///
    /// # Errors
    /// If one cannot be started.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        self.members.iter_mut().try_for_each(Process::spawn)
    }

    /// The members, running or not.
    #[must_use]
    pub fn members(&self) -> &[Process] {
        &self.members
    }

    /// One member.
    #[must_use]
    pub fn member(&self, number: usize) -> &Process {
        &self.members[number]
    }

    /// One member, to stop it or start it again.
    pub fn member_mut(&mut self, number: usize) -> &mut Process {
        &mut self.members[number]
    }

    /// A client of all members.
    ///
    /// # Errors
    /// If none of them can be reached.
    pub async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect_with(&self.endpoints(), patient()).await?)
    }

    /// All client URLs, with commas between.
    #[must_use]
    pub fn endpoints(&self) -> String {
        let urls: Vec<String> = self.members.iter().map(Process::client_url).collect();
        urls.join(",")
    }
}

//! The program on one screen: settings, build, run, drain.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::Signal;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;
use uuid::Uuid;

use crate::installer::Installer;
use crate::lock::Lock;
use crate::node::{Memory, Node, Running};
use crate::operator::socket::ControlSocket;
use crate::operator::{Facts, Identity, Installing, Operator};
use crate::panel::client_cert::{self, ClientCertificates};
use crate::panel::cores::Cores;
use crate::panel::doorman::Doorman;
use crate::panel::front::Front;
use crate::panel::gate::Gate;
use crate::panel::key_ring::KeyRing;
use crate::panel::listener::{Listener, UnderWay};
use crate::panel::maintenance::Maintenance;
use crate::panel::receipts::Receipts;
use crate::panel::reload::{self, Current, Pair, Trigger};
use crate::panel::rest::Rest;
use crate::panel::{grpc, health, ports, reflection, tls};
use crate::scrape::{self, Page};
use crate::settings::{InForce, Limits, Secret, Settings};
use crate::shutdown::{How, Shutdown};
use crate::systemd::{self, Manager};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{Connections, Port};
use crate::xray::core::Launcher;
use crate::xray::leftover;
use crate::xray::logs::Logs;
use crate::{disk, identity, operator, telemetry};

/// How long the verdicts on reports of usage are waited for at the end, when their connections are closed.
const VERDICTS: Duration = Duration::from_millis(1500);

/// Settings that another core is needed for.
const OF_THE_CORE: &[&str] = &[
    "XRAY_EXECUTABLE_PATH",
    "XRAY_ASSETS_PATH",
    "CORE_MEMORY_LIMIT",
    "HYSTERIA_IDLE_TIMEOUT",
];

/// Why the node can't run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder of ours can't be used.
    #[error("{}: {source}; the node needs this folder for itself", .path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another node works in the same folder.
    #[error("{}: another node runs there; give each its own RUNTIME_DIR and STATE_DIR", .0.display())]
    Taken(PathBuf),
    /// The node has no API key or no certificate.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The certificate can't be used.
    #[error("the certificate {} can't be used: {source}", .path.display())]
    Certificate {
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The task that changes things has ended; without it nothing works any more.
    #[error("the driver has ended, which is a defect of this program: the log above says how")]
    Driver,
    /// The clients' certificates can't be used.
    #[error("{}: {source}; it has to hold the certificates of the panels, PEM", .path.display())]
    Clients {
        /// Where they are.
        path: PathBuf,
        /// Why.
        #[source]
        source: client_cert::Unusable,
    },
    /// The port can't be had.
    #[error(
        "can't listen on {address}: {source}; set NODE_HOST, SERVICE_PORT and API_PORT to an address and ports that are free"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A node that listens and does not serve yet.
#[derive(Debug)]
pub struct App {
    listener: Listener,
    maintenance: Option<Listener>,
    metrics: Arc<Metrics>,
    metrics_listen: Option<SocketAddr>,
    installer: Installer,
    state_dir: PathBuf,
    limits: Limits,
    node: Node,
    running: Running,
    control: ControlSocket,
    facts: Facts,
    _locks: [Lock; 2],
}

impl App {
    /// Prepares folders, identity, port and node. Whatever is in the way is known before anything
    /// is started.
    ///
    /// # Errors
    /// When something is in the way.
    pub async fn build(settings: Settings, binary: PathBuf) -> Result<Self, Error> {
        let started = SystemTime::now();
        let wanted: Vec<SocketAddr> = std::iter::once(settings.listen)
            .chain(settings.maintenance)
            .collect();
        ports::close_all_but(&wanted);
        prepare_folder(&settings.state_dir)?;
        prepare_folder(&settings.runtime_dir)?;
        let locks = [lock(&settings.runtime_dir)?, lock(&settings.state_dir)?];

        let key_ring = KeyRing::open(
            settings.api_key.map(|Secret(key)| key),
            &settings.state_dir,
            settings.api_keys_file.clone(),
        )?;
        let certificate = identity::certificate(
            &settings.certificate,
            &settings.certificate_key,
            &settings.certificate_names,
        )?;
        let fail = |source| Error::Certificate {
            path: settings.certificate.clone(),
            source,
        };
        let certificate = Arc::new(Current::new(certificate).map_err(fail)?);
        let clients = clients(&settings)?;
        let tls = tls::acceptor(Arc::clone(&certificate), clients).map_err(fail)?;
        let metrics = Arc::new(Metrics::default());
        let open = metrics.connections(Port::Panel);
        let listener = bind(settings.listen, tls.clone(), settings.limits, open).await?;
        let open = metrics.connections(Port::Maintenance);
        let maintenance = match settings.maintenance {
            Some(address) => Some(bind(address, tls, settings.limits, open).await?),
            None => None,
        };

        let control =
            ControlSocket::bind(&settings.runtime_dir).map_err(|source| Error::Folder {
                path: operator::socket::path(&settings.runtime_dir),
                source,
            })?;
        end_cores_elsewhere(&settings.state_dir, &settings.runtime_dir).await;
        let logs = Arc::new(Logs::new(settings.log_buffer));
        let parts = settings.core.parts();
        let mut launcher = Launcher::new(parts, settings.runtime_dir, logs);
        launcher.tail_lines = settings.startup_log_tail;
        launcher.debug_config = settings.debug_config;
        launcher.metrics = Arc::clone(&metrics);
        match launcher.version().await {
            Ok(version) => tracing::info!(%version, "found xray"),
            // The node serves all the same: its panel learns the reason from its Start.
            Err(error) => tracing::warn!(%error, "there is no xray that could be started"),
        }
        let memory = Memory {
            state_dir: settings.state_dir.clone(),
            restore: settings.restore_on_boot,
            stop_grace: settings.stop_grace,
            usage: settings.usage,
            handover: settings.handover,
        };
        let (node, running) = Node::spawn(launcher, memory).await;
        let state_dir = settings.state_dir;
        let installer = Installer::new(node.clone(), &state_dir, settings.sources);
        let identity = Identity {
            address: listener.address().map_err(|source| Error::Listen {
                address: settings.listen,
                source,
            })?,
            maintenance: settings.maintenance,
            protocols: settings.protocols,
            key_ring: Arc::new(key_ring),
            pair: Pair {
                certificate: settings.certificate,
                key: settings.certificate_key,
            },
            certificate,
            names: settings.certificate_names,
        };
        let facts = Facts {
            started,
            instance: Uuid::new_v4(),
            metrics: Arc::default(),
            settings: Arc::new(InForce::at_the_start()),
            identity,
            binary,
        };
        Ok(Self {
            listener,
            maintenance,
            metrics,
            metrics_listen: settings.metrics,
            installer,
            state_dir,
            limits: settings.limits,
            node,
            running,
            control,
            facts,
            _locks: locks,
        })
    }

    /// Who the node is to panels.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.facts.identity
    }

    /// Serves until `shutdown`, then lets replies out, closes connections, and stops the core or
    /// leaves it to the daemon that comes next. Returns the ports that stay open for that one. Each
    /// hangup reads the certificate, the keys and the settings anew; a change of their files does so for
    /// the former two. The `manager` is told of all of it.
    ///
    /// # Errors
    /// Only when the node is broken; the core serves on then.
    pub async fn run(
        self,
        hangup: Signal,
        shutdown: Shutdown,
        manager: Manager,
    ) -> Result<Vec<TcpListener>, Error> {
        let identity = self.facts.identity.clone();
        tracing::info!(address = %identity.address, "serving panels");
        let under_way = UnderWay::default();
        let doorman = Doorman::new(under_way.replies.clone(), Arc::clone(&self.metrics));
        let doorman = Arc::new(doorman);
        let service = grpc::Service::new(self.node.clone(), shutdown.token().clone());
        let (health, reporter) = health::service();
        let mut routes =
            Routes::new(service.clone().into_server(self.limits.message)).add_service(health);
        let receipts = Receipts::new(self.node.clone());
        routes = routes
            .add_service(receipts.into_server(self.limits.message))
            .add_service(Cores::new(self.node.clone()).into_server(self.limits.message));
        match (reflection::v1(), reflection::v1alpha()) {
            (Ok(v1), Ok(v1alpha)) => routes = routes.add_service(v1).add_service(v1alpha),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "reflection can't be served");
            }
        }
        let routes = routes.prepare();
        let mut tasks = JoinSet::new();
        tasks.spawn(reporter.follow(self.node.clone()));
        let in_force = Arc::clone(&self.facts.settings);
        let metrics_served_at = Arc::clone(&self.facts.metrics);
        let operator = Operator::new(self.node.clone(), self.facts, shutdown.clone());
        let cores = Cores::new(self.node.clone());
        let installing =
            Installing::new(self.node.clone(), self.installer.clone(), &self.state_dir);
        let control = self
            .control
            .serve(operator, installing, cores, shutdown.clone());
        tasks.spawn(control);
        let (for_certificate, certificate_pulls) = reload::trigger();
        let (pair, current) = (identity.pair, identity.certificate);
        if let Some(address) = self.metrics_listen {
            let page = Page::new(self.metrics, self.node.clone(), Arc::clone(&current));
            tasks.spawn(scrape::serve(address, page, metrics_served_at));
        }
        let files = vec![pair.certificate.clone(), pair.key.clone()];
        tasks.spawn(reload::watch(files, certificate_pulls, move || {
            pair.reload(&current);
        }));
        let (for_keys, keys_pulls) = reload::trigger();
        let (key_ring, keys) = (
            Arc::clone(&identity.key_ring),
            Arc::clone(identity.key_ring.keys()),
        );
        let files = vec![key_ring.path().to_owned()];
        tasks.spawn(reload::watch(files, keys_pulls, move || key_ring.reload()));
        let front = Front::new(routes, Rest::new(service, &self.limits), identity.protocols);
        let mut maintenance = JoinSet::new();
        if let Some(listener) = self.maintenance {
            let (node, keys) = (self.node.clone(), Arc::clone(&keys));
            let service = Maintenance::new(
                node,
                keys,
                Arc::new(self.installer),
                Arc::clone(&doorman),
                self.limits.body_timeout,
            );
            maintenance.spawn(listener.serve(service, under_way.clone(), shutdown.clone()));
        }
        let files = [for_certificate, for_keys];
        let node = self.node.clone();
        tasks.spawn(follow_hangups(hangup, files, node, in_force, manager));
        tasks.spawn(systemd::watch(manager, self.running.pulse()));
        let mut reporting = JoinSet::new();
        let (node, ending) = (self.node.clone(), shutdown.clone());
        reporting.spawn(systemd::report(manager, node, ending));
        let service = Gate::new(front, keys, self.node, doorman);
        let mut running = self.running;
        let port = tokio::select! {
            port = self.listener.serve(service, under_way.clone(), shutdown.clone()) => port,
            () = running.broken() => return Err(Error::Driver),
        };
        drop(reporting.join_next().await);
        let other = maintenance.join_next().await.and_then(Result::ok);
        under_way.reports.close();
        drop(tokio::time::timeout(VERDICTS, under_way.reports.wait()).await);
        match shutdown.how() {
            How::Stop => running.stop().await,
            How::Detach | How::Exec => running.detach(shutdown.stop()).await,
        }
        tracing::info!("stopped");
        Ok(port.into_iter().chain(other.flatten()).collect())
    }
}

/// Whether a node would run with these settings, as far as that can be told beside one that runs.
///
/// # Errors
/// With what is in the way.
pub fn check(settings: &Settings) -> Result<(), Error> {
    let certificate = identity::certificate(
        &settings.certificate,
        &settings.certificate_key,
        &settings.certificate_names,
    )?;
    Current::new(certificate).map_err(|source| Error::Certificate {
        path: settings.certificate.clone(),
        source,
    })?;
    clients(settings)?;
    if let Some(path) = &settings.api_keys_file {
        identity::keys_file(path)?;
    }
    for address in std::iter::once(settings.listen).chain(settings.maintenance) {
        match TcpListener::bind(address) {
            // The node that runs has it, and hands it over.
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && ports::of_our_parent(address) => {}
            Err(source) => return Err(Error::Listen { address, source }),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Reads everything anew with each hangup: the files, then the settings.
async fn follow_hangups(
    mut hangup: Signal,
    files: [Trigger; 2],
    node: Node,
    in_force: Arc<InForce>,
    manager: Manager,
) {
    while hangup.recv().await.is_some() {
        manager.reloading().await;
        let reload = async {
            for file in &files {
                file.pull().await;
            }
            take_over_settings(&node, &in_force).await;
        };
        manager.with_time(reload).await;
        manager.ready().await;
    }
}

/// Takes over what can change while the node runs; everything else wants a restart.
async fn take_over_settings(node: &Node, in_force: &InForce) {
    let written = in_force.written();
    match Settings::load() {
        Ok(settings) => {
            node.set_stop_grace(settings.stop_grace);
            telemetry::set_level(settings.log_level);
            tracing::info!(
                "read LOG_LEVEL, STOP_GRACE, HANDOVER, DRAIN_TIMEOUT, XRAY_EXECUTABLE_PATH, XRAY_ASSETS_PATH, CORE_MEMORY_LIMIT and HYSTERIA_IDLE_TIMEOUT anew; other settings change with a restart"
            );
            // What becomes of it, and why not, is said where it is done.
            let renewed = node.renew(settings.core.parts(), settings.handover).await;
            let refused = if renewed.is_ok() { &[] } else { OF_THE_CORE };
            in_force.take_over_live_ones(written, refused);
        }
        Err(mistakes) => {
            tracing::error!(%mistakes, "the settings were not taken over, the old ones stay");
        }
    }
}

/// The certificates of clients that are trusted, where there are any.
fn clients(settings: &Settings) -> Result<Option<Arc<ClientCertificates>>, Error> {
    let Some(path) = &settings.client_certificates else {
        return Ok(None);
    };
    let clients = ClientCertificates::from_file(path, settings.require_client_certificate);
    clients.map(Some).map_err(|source| Error::Clients {
        path: path.clone(),
        source,
    })
}

async fn bind(
    address: SocketAddr,
    tls: TlsAcceptor,
    limits: Limits,
    open: Connections,
) -> Result<Listener, Error> {
    Listener::bind(address, tls, limits, open)
        .await
        .map_err(|source| Error::Listen { address, source })
}

fn prepare_folder(path: &Path) -> Result<(), Error> {
    disk::private_folder(path).map_err(|source| Error::Folder {
        path: path.to_owned(),
        source,
    })
}

/// A node whose runtime folder was changed has its core under the old one: nobody would find it there.
async fn end_cores_elsewhere(state_dir: &Path, runtime_dir: &Path) {
    let note = state_dir.join("runtime-dir");
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let here = real(runtime_dir);
    if let Ok(before) = std::fs::read(&note) {
        let before = real(Path::new(&std::ffi::OsString::from_vec(before)));
        // Where another node lives there, it is not ours: the state was copied.
        if before != here
            && let Ok(_alone) = lock(&before)
        {
            let ended = leftover::end(&before, &[]).await;
            tracing::warn!(folder = %before.display(), ended, "RUNTIME_DIR has changed, and so the core is started anew");
        }
    }
    if let Err(error) = disk::write_private(&note, here.as_os_str().as_encoded_bytes()) {
        tracing::warn!(path = %note.display(), %error, "a change of RUNTIME_DIR would not be noticed");
    }
}

fn lock(folder: &Path) -> Result<Lock, Error> {
    match Lock::take(folder) {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => Err(Error::Taken(folder.to_owned())),
        Err(source) => Err(Error::Folder {
            path: folder.to_owned(),
            source,
        }),
    }
}

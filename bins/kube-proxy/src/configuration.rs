//! KubeProxyConfiguration (`kubeproxy.config.k8s.io/v1alpha1`): what an operator has decided, in a file or by flags.
//!
//! It is the one source of truth. Flags are another way to write its fields ([`flags`](crate::flags)), and what the
//! fields mean together is for [`settings`](crate::settings) to say. Fields have the names that Kubernetes gives them.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize, Serializer};

mod read;
mod write;

pub(crate) use read::{Error, File, of_file, of_flags};

use crate::duration::GoDuration;

/// The only version there is.
pub(crate) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
pub(crate) const KIND: &str = "KubeProxyConfiguration";

/// The minor version before the one that this stands in for.
pub(crate) const PREVIOUS_MINOR: &str = "1.35";

/// What stands for an address that nothing is served on. An empty one in a file asks for the default, as it always
/// has: kubeadm writes it.
pub(crate) const DISABLED: &str = "0";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Configuration {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) feature_gates: BTreeMap<String, bool>,
    pub(crate) client_connection: ClientConnection,
    pub(crate) logging: Logging,
    pub(crate) hostname_override: String,
    pub(crate) bind_address: String,
    #[serde(default)]
    pub(crate) healthz_bind_address: String,
    #[serde(default)]
    pub(crate) metrics_bind_address: String,
    pub(crate) bind_address_hard_fail: bool,
    pub(crate) enable_profiling: bool,
    pub(crate) show_hidden_metrics_for_version: String,
    pub(crate) mode: String,
    pub(crate) iptables: Iptables,
    pub(crate) ipvs: Ipvs,
    pub(crate) nftables: Nftables,
    pub(crate) winkernel: Winkernel,
    pub(crate) detect_local_mode: String,
    pub(crate) detect_local: DetectLocal,
    #[serde(rename = "clusterCIDR")]
    pub(crate) cluster_cidr: String,
    #[serde(serialize_with = "null_if_empty")]
    pub(crate) node_port_addresses: Vec<String>,
    pub(crate) oom_score_adj: i32,
    pub(crate) conntrack: Conntrack,
    pub(crate) config_sync_period: GoDuration,
    pub(crate) port_range: String,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) windows_run_as_service: bool,
}

/// How the API server is spoken to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ClientConnection {
    pub(crate) kubeconfig: String,
    pub(crate) accept_content_types: String,
    pub(crate) content_type: String,
    /// Requests a second.
    #[serde(serialize_with = "shortest")]
    pub(crate) qps: f32,
    pub(crate) burst: i32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Logging {
    pub(crate) format: String,
    pub(crate) flush_frequency: FlushFrequency,
    pub(crate) verbosity: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) vmodule: Vec<VModule>,
    pub(crate) options: LoggingOptions,
}

/// A number is nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum FlushFrequency {
    Text(GoDuration),
    Nanoseconds(u64),
}

/// The verbosity of the source files whose names fit a pattern.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VModule {
    pub(crate) file_pattern: String,
    pub(crate) verbosity: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LoggingOptions {
    pub(crate) text: OutputRouting,
    pub(crate) json: OutputRouting,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct OutputRouting {
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) split_stream: bool,
    pub(crate) info_buffer_size: Quantity,
}

/// A number of bytes as Kubernetes writes it, such as `2Ki`. Nothing here is buffered, so only the text is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "QuantityForm")]
pub(crate) struct Quantity(pub(crate) String);

#[derive(Deserialize)]
#[serde(untagged)]
enum QuantityForm {
    Text(String),
    Number(i64),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Iptables {
    pub(crate) masquerade_bit: i32,
    pub(crate) masquerade_all: bool,
    pub(crate) localhost_node_ports: bool,
    pub(crate) sync_period: GoDuration,
    pub(crate) min_sync_period: GoDuration,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Ipvs {
    pub(crate) sync_period: GoDuration,
    pub(crate) min_sync_period: GoDuration,
    pub(crate) scheduler: String,
    #[serde(rename = "excludeCIDRs", serialize_with = "null_if_empty")]
    pub(crate) exclude_cidrs: Vec<String>,
    #[serde(rename = "strictARP")]
    pub(crate) strict_arp: bool,
    pub(crate) tcp_timeout: GoDuration,
    pub(crate) tcp_fin_timeout: GoDuration,
    pub(crate) udp_timeout: GoDuration,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Nftables {
    pub(crate) masquerade_bit: i32,
    pub(crate) masquerade_all: bool,
    pub(crate) sync_period: GoDuration,
    pub(crate) min_sync_period: GoDuration,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Winkernel {
    pub(crate) network_name: String,
    pub(crate) source_vip: String,
    #[serde(rename = "enableDSR")]
    pub(crate) enable_dsr: bool,
    pub(crate) root_hns_endpoint_name: String,
    pub(crate) forward_health_check_vip: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DetectLocal {
    pub(crate) bridge_interface: String,
    pub(crate) interface_name_prefix: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Conntrack {
    pub(crate) max_per_core: i32,
    pub(crate) min: i32,
    pub(crate) tcp_established_timeout: GoDuration,
    pub(crate) tcp_close_wait_timeout: GoDuration,
    pub(crate) tcp_be_liberal: bool,
    pub(crate) udp_timeout: GoDuration,
    pub(crate) udp_stream_timeout: GoDuration,
}

const fn seconds(seconds: u64) -> GoDuration {
    GoDuration(Duration::from_secs(seconds))
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            feature_gates: BTreeMap::new(),
            client_connection: ClientConnection::default(),
            logging: Logging::default(),
            hostname_override: String::new(),
            bind_address: "0.0.0.0".to_owned(),
            healthz_bind_address: "0.0.0.0:10256".to_owned(),
            metrics_bind_address: "127.0.0.1:10249".to_owned(),
            bind_address_hard_fail: false,
            enable_profiling: false,
            show_hidden_metrics_for_version: String::new(),
            mode: "ipvs".to_owned(),
            iptables: Iptables::default(),
            ipvs: Ipvs::default(),
            nftables: Nftables::default(),
            winkernel: Winkernel::default(),
            detect_local_mode: "ClusterCIDR".to_owned(),
            detect_local: DetectLocal::default(),
            cluster_cidr: String::new(),
            node_port_addresses: Vec::new(),
            oom_score_adj: -999,
            conntrack: Conntrack::default(),
            config_sync_period: seconds(15 * 60),
            port_range: String::new(),
            windows_run_as_service: false,
        }
    }
}

impl Default for ClientConnection {
    fn default() -> Self {
        Self {
            kubeconfig: String::new(),
            accept_content_types: String::new(),
            content_type: "application/vnd.kubernetes.protobuf".to_owned(),
            qps: 5.0,
            burst: 10,
        }
    }
}

impl Default for Logging {
    fn default() -> Self {
        Self {
            format: "text".to_owned(),
            flush_frequency: FlushFrequency::Text(seconds(5)),
            verbosity: 0,
            vmodule: Vec::new(),
            options: LoggingOptions::default(),
        }
    }
}

impl Default for OutputRouting {
    fn default() -> Self {
        Self {
            split_stream: false,
            info_buffer_size: Quantity("0".to_owned()),
        }
    }
}

impl Default for Iptables {
    fn default() -> Self {
        Self {
            masquerade_bit: 14,
            masquerade_all: false,
            localhost_node_ports: true,
            sync_period: seconds(0),
            min_sync_period: seconds(0),
        }
    }
}

impl Default for Ipvs {
    fn default() -> Self {
        Self {
            sync_period: seconds(30),
            min_sync_period: seconds(0),
            scheduler: String::new(),
            exclude_cidrs: Vec::new(),
            strict_arp: false,
            tcp_timeout: seconds(0),
            tcp_fin_timeout: seconds(0),
            udp_timeout: seconds(0),
        }
    }
}

impl Default for Nftables {
    fn default() -> Self {
        Self {
            masquerade_bit: 14,
            masquerade_all: false,
            sync_period: seconds(0),
            min_sync_period: seconds(0),
        }
    }
}

impl Default for Conntrack {
    fn default() -> Self {
        Self {
            max_per_core: 32768,
            min: 131_072,
            tcp_established_timeout: seconds(24 * 3600),
            tcp_close_wait_timeout: seconds(3600),
            tcp_be_liberal: false,
            udp_timeout: seconds(0),
            udp_stream_timeout: seconds(0),
        }
    }
}

impl FlushFrequency {
    pub(crate) fn duration(self) -> Duration {
        match self {
            Self::Text(duration) => duration.0,
            Self::Nanoseconds(nanoseconds) => Duration::from_nanos(nanoseconds),
        }
    }
}

impl Quantity {
    /// Whether the text is a sign, digits with a point among them, and a suffix or an exponent.
    pub(crate) fn is_valid(&self) -> bool {
        let unsigned = self.0.strip_prefix(['+', '-']).unwrap_or(&self.0);
        let digits = unsigned
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(digits);
        let is_number = number.contains(|c: char| c.is_ascii_digit()) && number.matches('.').count() <= 1;
        let is_exponent = |suffix: &str| {
            suffix
                .strip_prefix(['e', 'E'])
                .is_some_and(|exponent| exponent.parse::<i32>().is_ok())
        };
        const SUFFIXES: [&str; 16] = [
            "", "n", "u", "m", "k", "K", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi",
        ];
        is_number && (SUFFIXES.contains(&suffix) || suffix == "Ei" || is_exponent(suffix))
    }
}

impl From<QuantityForm> for Quantity {
    fn from(form: QuantityForm) -> Self {
        match form {
            QuantityForm::Text(text) => Self(text),
            QuantityForm::Number(number) => Self(number.to_string()),
        }
    }
}

fn null_if_empty<S: Serializer>(list: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    if list.is_empty() {
        serializer.serialize_none()
    } else {
        serializer.collect_seq(list)
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Writes a number without the digits that only a wider type has, and without a fraction if it is whole.
fn shortest<S: Serializer>(number: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    match number.to_string().parse::<i64>() {
        Ok(whole) => serializer.serialize_i64(whole),
        Err(_) => serializer.serialize_f64(number.to_string().parse().unwrap_or_else(|_| f64::from(*number))),
    }
}

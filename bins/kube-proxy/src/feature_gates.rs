//! Kubernetes' feature gates, those of all components: what switches one may be shared by many.

use std::collections::BTreeMap;

/// How far a feature has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Alpha,
    Beta,
    /// GA: generally available.
    General,
    Deprecated,
}

impl Stage {
    /// The stage's name in Kubernetes.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Alpha => "ALPHA",
            Self::Beta => "BETA",
            Self::General => "GA",
            Self::Deprecated => "DEPRECATED",
        }
    }
}

/// Gates that are alike.
struct Gates {
    stage: Stage,
    default: bool,
    /// The default cannot be changed.
    locked: bool,
    /// With blanks between.
    names: &'static str,
}

const fn gates(stage: Stage, default: bool, locked: bool, names: &'static str) -> Gates {
    Gates {
        stage,
        default,
        locked,
        names,
    }
}

/// The gates that kube-proxy of [this release](crate::version::KUBERNETES) knows.
#[rustfmt::skip]
const KNOWN: &[Gates] = &[
    gates(Stage::Alpha, false, false,
        "APIServingWithRoutine AllAlpha AllowUnsafeMalformedObjectDeletion CBORServingAndStorage \
         CPUManagerPolicyAlphaOptions CRIListStreaming CSIVolumeHealth ClientsAllowCBOR ClientsPreferCBOR \
         CloudControllerManagerWatchBasedRoutesReconciliation CloudControllerManagerWebhook \
         ContainerStopSignals ControllerManagerReleaseLeaderElectionLockOnExit CrossNamespaceVolumeDataSource \
         DRAListTypeAttributes DRANodeAllocatableResources DRAResourcePoolStatus DRAWorkloadResourceClaims \
         EventedPLEG GangScheduling GenericWorkload HPAScaleToZero ImageVolumeWithDigest \
         InPlacePodVerticalScalingExclusiveCPUs InPlacePodVerticalScalingExclusiveMemory \
         KubeletInUserNamespace LoggingAlphaOptions ManifestBasedAdmissionControlConfig MemoryQoS \
         MutablePVNodeAffinity NativeHistograms PersistentVolumeClaimUnusedSinceTime \
         PodAndContainerStatsFromCRI PodLevelResourceManagers PodLogsQuerySplitStreams PodsAPI QOSReserved \
         ReduceDefaultCrashLoopBackOffDecay RuntimeClassInImageCriApi ShardedListAndWatch \
         StorageCapacityScoring StorageVersionAPI TaintTolerationComparisonOperators \
         TopologyAwareWorkloadScheduling TopologyManagerPolicyAlphaOptions UserNamespacesHostNetworkSupport \
         VolumeLimitScaling WindowsCPUAndMemoryAffinity WorkloadAwarePreemption WorkloadWithJob"),
    gates(Stage::Beta, false, false,
        "AllBeta ClusterTrustBundle ClusterTrustBundleProjection ConcurrentWatchObjectDecode \
         CoordinatedLeaderElection DRADeviceTaintRules LocalStorageCapacityIsolationFSQuotaMonitoring \
         MaxUnavailableStatefulSet PodCertificateRequest SELinuxMount SchedulerAsyncAPICalls \
         StorageVersionMigrator"),
    gates(Stage::Beta, true, false,
        "APIResponseCompression APIServerIdentity AllowParsingUserUIDFromCertAuth AtomicFIFO \
         AuthorizePodWebsocketUpgradeCreatePermission CPUManagerPolicyBetaOptions \
         CRDObservedGenerationTracking ClearingNominatedNodeNameAfterBinding ClientsAllowCARotation \
         ClientsAllowTLSCacheGC ComponentFlagz ComponentStatusz ConstrainedImpersonation ContainerCheckpoint \
         ContainerRestartRules ContextualLogging DRAConsumableCapacity DRADeviceBindingConditions \
         DRADeviceTaints DRAExtendedResource DRAPartitionableDevices DRAResourceClaimDeviceStatus \
         DRAResourceClaimGranularStatusAuthorization DRASchedulerFilterTimeout DeclarativeValidationBeta \
         DeploymentReplicaSetTerminatingReplicas DetectCacheInconsistency EnvFiles ExtendWebSocketsToKubelet \
         GracefulNodeShutdown GracefulNodeShutdownBasedOnPodPriority HPAConfigurableTolerance \
         HostnameOverride InOrderInformersBatchProcess InPlacePodLevelResourcesVerticalScaling \
         InPlacePodVerticalScalingInitContainers KubeletCrashLoopBackOffMax KubeletEnsureSecretPulledImages \
         KubeletSeparateDiskGC KubeletServiceAccountTokenForCredentialProviders ListFromCacheSnapshot \
         LoggingBetaOptions MatchLabelKeysInPodTopologySpread MatchLabelKeysInPodTopologySpreadSelectorMerge \
         MutablePodResourcesForSuspendedJobs MutableSchedulingDirectivesForSuspendedJobs NodeDeclaredFeatures \
         NominatedNodeNameForExpectation OpenAPIEnums OpportunisticBatching PLEGOnDemandRelist \
         PodDeletionCost PodLevelResources PodReadyToStartContainersCondition PodTopologyLabelsAdmission \
         PortForwardWebsockets PreventStaticPodAPIReferences RelaxedServiceNameValidation \
         ReloadKubeletClientCAFile ReloadKubeletServerCertificateFile RemoteRequestHeaderUID \
         ResourceHealthStatus ResourceHealthStatusMessage RestartAllContainersOnContainerExits \
         RotateKubeletServerCertificate SchedulerAsyncPreemption SchedulerPopFromBackoffQ \
         ServiceAccountNodeAudienceRestriction SizeBasedListCostEstimate StaleControllerConsistencyDaemonSet \
         StaleControllerConsistencyJob StaleControllerConsistencyReplicaSet \
         StaleControllerConsistencyStatefulSet StatefulSetSemanticRevisionComparison StorageVersionHash \
         StrictIPCIDRValidation StructuredAuthenticationConfigurationEgressSelector \
         StructuredAuthenticationConfigurationJWKSMetrics TokenRequestServiceAccountUIDValidation \
         TopologyManagerPolicyBetaOptions TranslateStreamCloseWebsocketRequests \
         UnauthenticatedHTTP2DOSMitigation UnknownVersionInteroperabilityProxy UnlockWhileProcessingFIFO \
         WatchCacheInitializationPostStartHook WatchList WatchListClient WindowsGracefulNodeShutdown"),
    gates(Stage::General, true, false,
        "AllowServiceExternalIPs CustomCPUCFSQuotaPeriod DRAPrioritizedList InformerResourceVersion \
         MutatingAdmissionPolicy"),
    gates(Stage::General, true, true,
        "APIServerTracing AnonymousAuthConfigurableEndpoints AnyVolumeDataSource AuthorizeNodeWithSelectors \
         AuthorizeWithSelectors BtreeWatchCache CPUManagerPolicyOptions CRDValidationRatcheting \
         CSIServiceAccountTokenSecrets ConsistentListFromCache CustomResourceFieldSelectors DRAAdminAccess \
         DeclarativeValidation DisableAllocatorDualWrite DynamicResourceAllocation ExecProbeTimeout \
         ExternalServiceAccountTokenSigner ImageMaximumGCAge ImageVolume InOrderInformers \
         InPlacePodVerticalScaling JobBackoffLimitPerIndex JobManagedBy JobPodReplacementPolicy \
         JobSuccessPolicy KubeletCgroupDriverFromCRI KubeletFineGrainedAuthz KubeletPSI \
         KubeletPodResourcesDynamicResources KubeletPodResourcesGet KubeletTracing LogarithmicScaleDown \
         MatchLabelKeysInPodAffinity MultiCIDRServiceAllocator MutableCSINodeAllocatableCount \
         NFTablesProxyMode NodeInclusionPolicyInPodTopologySpread NodeLogQuery NodeSwap \
         OrderedNamespaceDeletion PodLifecycleSleepAction PodLifecycleSleepActionAllowZero \
         PodObservedGenerationTracking PodSchedulingReadiness PreferSameTrafficDistribution ProcMountType \
         RecoverVolumeExpansionFailure RecursiveReadOnlyMounts RelaxedDNSSearchValidation \
         RelaxedEnvironmentVariableValidation ResilientWatchCacheInitialization RetryGenerateName \
         SELinuxChangePolicy SELinuxMountReadWriteOncePod SchedulerQueueingHints \
         SeparateTaintEvictionController ServiceAccountTokenJTI ServiceAccountTokenNodeBinding \
         ServiceAccountTokenNodeBindingValidation ServiceAccountTokenPodNodeInfo SidecarContainers \
         StreamingCollectionEncodingToJSON StreamingCollectionEncodingToProtobuf \
         StructuredAuthenticationConfiguration SupplementalGroupsPolicy SystemdWatchdog \
         TopologyManagerPolicyOptions UserNamespacesSupport VolumeAttributesClass WinDSR WinOverlay"),
    gates(Stage::Deprecated, false, false,
        "AllowDNSOnlyNodeCSR AllowInsecureKubeletCertificateSigningRequests \
         ChangeContainerStatusOnKubeletRestart DeclarativeValidationTakeover KMSv1 \
         KubeletRegistrationGetOnExistsOnly WindowsHostNetwork"),
    gates(Stage::Deprecated, true, false,
        "DisableCPUQuotaWithExclusiveCPUs KubeletPodResourcesListUseActivePods ServiceCIDRStatusFieldWiping \
         StorageNamespaceIndex"),
    gates(Stage::Deprecated, false, true,
        "AllowOverwriteTerminationGracePeriodSeconds GitRepoVolumeDriver SeparateCacheWatchRPC"),
    gates(Stage::Deprecated, true, true,
        "AggregatedDiscoveryRemoveBetaType DisableNodeKubeProxyVersion"),
];

const ALL_ALPHA: &str = "AllAlpha";
const ALL_BETA: &str = "AllBeta";

/// The gates, each as it is decided.
#[derive(Clone, Debug)]
pub(crate) struct FeatureGates(BTreeMap<&'static str, (Stage, bool)>);

/// Why a gate cannot be what is asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("unrecognized feature gate: {0}")]
    Unknown(String),
    #[error("cannot set feature gate {name} to {}, feature is locked to {locked}", !locked)]
    Locked { name: String, locked: bool },
}

impl Default for FeatureGates {
    fn default() -> Self {
        let gates = KNOWN.iter().flat_map(|gates| {
            let names = gates.names.split_whitespace();
            names.map(|name| (name, (gates.stage, gates.default)))
        });
        Self(gates.collect())
    }
}

impl FeatureGates {
    /// Decides the gates as the configuration says. All that is wrong is in the error.
    pub(crate) fn new(wanted: &BTreeMap<String, bool>) -> Result<Self, Vec<Error>> {
        let mut decided = Self::default();
        let mut errors = Vec::new();
        for (all, stage) in [(ALL_ALPHA, Stage::Alpha), (ALL_BETA, Stage::Beta)] {
            if let Some(enabled) = wanted.get(all) {
                decided.0.values_mut().for_each(|gate| {
                    if gate.0 == stage {
                        gate.1 = *enabled;
                    }
                });
            }
        }
        for (name, enabled) in wanted {
            match decided.0.get_mut(name.as_str()) {
                None => errors.push(Error::Unknown(name.clone())),
                Some((_, decided)) if is_locked(name) && *decided != *enabled => errors.push(Error::Locked {
                    name: name.clone(),
                    locked: *decided,
                }),
                Some((_, decided)) => *decided = *enabled,
            }
        }
        if errors.is_empty() {
            Ok(decided)
        } else {
            Err(errors)
        }
    }

    /// Every gate: its name, its stage, and whether it is enabled.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, Stage, bool)> {
        self.0
            .iter()
            .map(|(name, (stage, enabled))| (*name, *stage, *enabled))
    }

    /// Those of the wanted gates that have no future, with their stage.
    pub(crate) fn on_their_way_out(wanted: &BTreeMap<String, bool>) -> impl Iterator<Item = (&str, Stage)> {
        let known = Self::default();
        wanted
            .keys()
            .filter_map(move |name| match known.0.get(name.as_str()) {
                Some((stage @ (Stage::General | Stage::Deprecated), _)) => Some((name.as_str(), *stage)),
                _ => None,
            })
    }

    fn enabled(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|(_, enabled)| *enabled)
    }

    /// Whether `externalIPs` of Services are programmed.
    pub(crate) fn external_ips(&self) -> bool {
        self.enabled("AllowServiceExternalIPs")
    }

    /// Whether `/flagz` is served.
    pub(crate) fn flagz(&self) -> bool {
        self.enabled("ComponentFlagz")
    }

    /// Whether `/statusz` is served.
    pub(crate) fn statusz(&self) -> bool {
        self.enabled("ComponentStatusz")
    }

    /// Whether the log may be split into two streams.
    pub(crate) fn logging_alpha_options(&self) -> bool {
        self.enabled("LoggingAlphaOptions")
    }

    /// Whether the log may be JSON.
    pub(crate) fn logging_beta_options(&self) -> bool {
        self.enabled("LoggingBetaOptions")
    }
}

fn is_locked(name: &str) -> bool {
    KNOWN
        .iter()
        .any(|gates| gates.locked && gates.names.split_whitespace().any(|locked| locked == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(wanted: &[(&str, bool)]) -> Result<FeatureGates, Vec<String>> {
        let wanted = wanted
            .iter()
            .map(|(name, enabled)| ((*name).to_owned(), *enabled));
        FeatureGates::new(&wanted.collect())
            .map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn gates_are_as_kubernetes_has_them_unless_decided() {
        let gates = decided(&[]).unwrap();
        assert!(gates.external_ips() && gates.flagz() && gates.statusz() && gates.logging_beta_options());
        assert!(!gates.logging_alpha_options());
        let gates = decided(&[("AllowServiceExternalIPs", false), ("LoggingAlphaOptions", true)]).unwrap();
        assert!(!gates.external_ips() && gates.logging_alpha_options());
    }

    #[test]
    fn no_gate_is_there_twice() {
        let names = KNOWN
            .iter()
            .flat_map(|gates| gates.names.split_whitespace())
            .count();
        assert_eq!(FeatureGates::default().iter().count(), names);
    }

    #[test]
    fn what_cannot_be_is_said_all_at_once() {
        let errors = decided(&[
            ("MultiCIDRServiceAllocator", false),
            ("NFTablesProxyMode", true),
            ("NoSuchGate", true),
        ]);
        assert_eq!(
            errors.unwrap_err(),
            [
                "cannot set feature gate MultiCIDRServiceAllocator to false, feature is locked to true",
                "unrecognized feature gate: NoSuchGate",
            ]
        );
    }

    #[test]
    fn a_stage_is_decided_at_once_but_for_gates_of_their_own_mind() {
        let gates = decided(&[("AllBeta", false), ("ComponentFlagz", true)]).unwrap();
        assert!(gates.flagz() && !gates.statusz() && gates.external_ips());
        let gates = decided(&[("AllAlpha", true)]).unwrap();
        assert!(gates.logging_alpha_options());
    }

    #[test]
    fn gates_on_their_way_out_are_named() {
        let wanted = ["AllowServiceExternalIPs", "ComponentFlagz", "KMSv1", "NoSuchGate"];
        let wanted = wanted.map(|name| (name.to_owned(), true)).into();
        let named: Vec<_> = FeatureGates::on_their_way_out(&wanted).collect();
        assert_eq!(
            named,
            [
                ("AllowServiceExternalIPs", Stage::General),
                ("KMSv1", Stage::Deprecated)
            ]
        );
    }
}

//! What Services ask for by annotation.

use integration::Result;
use integration::manifest::Endpoint;

use crate::{WEB_SERVERS, web, web_objects};

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn annotations_change_schedulers_weights_and_nodes_and_are_withdrawn() -> Result<()> {
    let (mut cluster, pods) = web()?;
    let plain = web_objects(&pods.each_ref().map(Endpoint::from));
    let annotated = |annotations: &str| {
        let [service, slice] = &plain;
        let metadata = "metadata: {name: web,";
        assert!(service.contains(metadata));
        let service = service.replace(metadata, &format!("{metadata} annotations: {{{annotations}}},"));
        [
            service.replace("[{port: 80}]", "[{port: 80}, {name: u, port: 53, protocol: UDP}]"),
            slice.replace(
                "[{port: 8080}]",
                "[{port: 8080}, {name: u, port: 53, protocol: UDP}]",
            ),
        ]
    };
    cluster.start(&[])?;
    cluster.expect_servers(WEB_SERVERS)?;

    // E15: one-packet scheduling is for datagrams only. A10: mh has its fallback, whatever is asked for.
    cluster.apply(
        "web",
        &annotated(
            "ipvs-proxier/scheduler: mh, ipvs-proxier/one-packet: \"true\", \
             ipvs-proxier/weights: \"10.244.0.11=3,10.244.1.0/24=0\"",
        ),
    )?;
    cluster.expect_servers(
        "-A -t 10.96.0.10:80 -s mh -b mh-fallback,mh-port
         -a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 3
         -a -t 10.96.0.10:80 -r 10.244.1.12:8080 -m -w 0
         -A -u 10.96.0.10:53 -s mh -o -b mh-fallback,mh-port
         -a -u 10.96.0.10:53 -r 10.244.0.11:53 -m -w 3
         -a -u 10.96.0.10:53 -r 10.244.1.12:53 -m -w 0",
    )?;

    // D11: this node leaves the Service to something else.
    cluster.apply(
        "web",
        &annotated("ipvs-proxier/excluded-nodes: \"elsewhere,node\""),
    )?;
    cluster.expect_no_trace("10.96.0.10")?;

    cluster.apply("web", &plain)?;
    cluster.expect_servers(WEB_SERVERS)
}

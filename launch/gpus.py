"""GPU nodes of Google Cloud by machine type: node labels, and GPUDirect between the nodes.

A node has 8 GPUs and runs one process. NVLink joins the GPUs of a node; between nodes NCCL uses the
network cards beside the GPUs (GPUDirect), which a pod gets by asking for them: networks as
annotations, drivers from the node's disk, variables of NCCL, and for two machine types a daemon.
Sources: GKE docs, "Maximize GPU network bandwidth" (TCPX, TCPXO) and "Create a custom AI-optimized
GKE cluster" (RDMA), whose names of networks are used; the manifests of
GoogleCloudPlatform/container-engine-accelerators, gpudirect-*/nccl-test*.yaml.
"""

from __future__ import annotations

import dataclasses
import json

GPUS_OF_A_NODE = 8
LIBRARIES = '/usr/local/nvidia/lib64'  # where GKE mounts drivers, and Google's NCCL beside them
GIB = '/usr/local/gib'  # and its plugin for RDMA

_DEVICES = tuple(f'/dev/nvidia{i}' for i in range(GPUS_OF_A_NODE)) + (
  '/dev/nvidiactl',
  '/dev/nvidia-uvm',
)
_REGISTRY = 'us-docker.pkg.dev/gce-ai-infra'


@dataclasses.dataclass(frozen=True)
class Daemon:
  """A container beside the training that moves data between GPUs and network cards."""

  name: str
  image: str
  command: tuple[str, ...]
  capabilities: tuple[str, ...]
  mounts: dict[str, str]  # volume -> path in the daemon
  devices: tuple[str, ...]  # that it opens


@dataclasses.dataclass(frozen=True)
class Machine:
  """One machine type, and how its nodes reach each other."""

  label: str  # node label cloud.google.com/gke-accelerator
  networks: tuple[str, ...]  # GKE Network objects beside `default`, for `interfaces` in turn
  interfaces: tuple[str, ...]
  volumes: dict[str, str]  # name -> folder of the node
  mounts: dict[str, str]  # name -> where the training sees it
  variables: dict[str, str] = dataclasses.field(default_factory=dict)
  libraries: str = LIBRARIES  # where the training looks for them
  script: str = ''  # of the node, sourced for the variables of NCCL that it sets
  daemon: Daemon | None = None

  def annotations(self) -> dict[str, str]:
    """Return the annotations of a pod that ask for the networks and the daemon's devices."""
    pairs = [('eth0', 'default'), *zip(self.interfaces, self.networks, strict=True)]
    interfaces = [dict(interfaceName=name, network=network) for name, network in pairs]
    annotations = {
      'networking.gke.io/default-interface': 'eth0',
      'networking.gke.io/interfaces': json.dumps(interfaces),
    }
    if self.daemon:
      devices = [dict(path=path) for path in self.daemon.devices]
      annotations[f'devices.gke.io/container.{self.daemon.name}'] = json.dumps(devices)
    return annotations


def _numbered(name: str, first: int, count: int) -> tuple[str, ...]:
  return tuple(f'{name}{i}' for i in range(first, first + count))


_DAEMON_MOUNTS = {'nvidia': LIBRARIES, 'sys': '/hostsysfs', 'proc-sys': '/hostprocsysfs'}
_DAEMON_VOLUMES = {
  'nvidia': '/home/kubernetes/bin/nvidia/lib64',
  'sys': '/sys',
  'proc-sys': '/proc/sys',
}

_TCPX = Machine(
  label='nvidia-h100-80gb',
  networks=_numbered('vpc', 1, 4),
  interfaces=_numbered('eth', 1, 4),
  volumes=_DAEMON_VOLUMES | {'tcpx-socket': '/run/tcpx'},
  mounts={'nvidia': LIBRARIES, 'tcpx-socket': '/run/tcpx'},
  # nccl-config.yaml beside the manifests; the cores of each card are those of an a3-highgpu-8g.
  variables={
    'NCCL_SOCKET_IFNAME': 'eth0',
    'NCCL_ALGO': 'Ring,Tree',
    'NCCL_PROTO': 'Simple',
    'NCCL_CROSS_NIC': '0',
    'NCCL_NET_GDR_LEVEL': 'PIX',
    'NCCL_P2P_PXN_LEVEL': '0',
    'NCCL_DYNAMIC_CHUNK_SIZE': '524288',
    'NCCL_P2P_NET_CHUNKSIZE': '524288',
    'NCCL_P2P_PCI_CHUNKSIZE': '524288',
    'NCCL_P2P_NVL_CHUNKSIZE': '1048576',
    'NCCL_BUFFSIZE': '4194304',
    'NCCL_NSOCKS_PERTHREAD': '4',
    'NCCL_SOCKET_NTHREADS': '1',
    'NCCL_GPUDIRECTTCPX_SOCKET_IFNAME': 'eth1,eth2,eth3,eth4',
    'NCCL_GPUDIRECTTCPX_CTRL_DEV': 'eth0',
    'NCCL_GPUDIRECTTCPX_UNIX_CLIENT_PREFIX': '/run/tcpx',
    'NCCL_GPUDIRECTTCPX_PROGRAM_FLOW_STEERING_WAIT_MICROS': '500000',
    'NCCL_GPUDIRECTTCPX_TX_BINDINGS': (
      'eth1:8-21,112-125;eth2:8-21,112-125;eth3:60-73,164-177;eth4:60-73,164-177'
    ),
    'NCCL_GPUDIRECTTCPX_RX_BINDINGS': (
      'eth1:22-35,126-139;eth2:22-35,126-139;eth3:74-87,178-191;eth4:74-87,178-191'
    ),
  },
  daemon=Daemon(
    name='tcpx-daemon',
    image=f'{_REGISTRY}/gpudirect-tcpx/tcpgpudmarxd-dev:v2.0.12',
    command=(
      '/tcpgpudmarxd/build/app/tcpgpudmarxd',
      *('--gpu_nic_preset', 'a3vm', '--gpu_shmem_type', 'fd', '--uds_path', '/run/tcpx'),
      *('--setup_param', '--verbose 128 2 0'),
    ),
    capabilities=('NET_ADMIN',),
    mounts=_DAEMON_MOUNTS | {'tcpx-socket': '/run/tcpx'},
    devices=_DEVICES,
  ),
)
_TCPXO = Machine(
  label='nvidia-h100-mega-80gb',
  networks=_numbered('vpc', 1, 8),
  interfaces=_numbered('eth', 1, 8),
  volumes=_DAEMON_VOLUMES | {'aperture-devices': '/dev/aperture_devices'},
  mounts={'nvidia': LIBRARIES, 'aperture-devices': '/dev/aperture_devices'},
  variables={'NCCL_FASTRAK_LLCM_DEVICE_DIRECTORY': '/dev/aperture_devices'},
  script=f'{LIBRARIES}/nccl-env-profile.sh',
  daemon=Daemon(
    name='tcpxo-daemon',
    image=f'{_REGISTRY}/gpudirect-tcpxo/tcpgpudmarxd-dev:v1.0.21',
    command=(
      *('/bin/sh', '-c'),
      'chmod 755 /fts/entrypoint_rxdm_container.sh && '
      'exec /fts/entrypoint_rxdm_container.sh --num_hops=2 --num_nics=8',
    ),
    capabilities=('NET_ADMIN', 'NET_BIND_SERVICE'),
    mounts=_DAEMON_MOUNTS,
    devices=(*_DEVICES, '/dev/dmabuf_import_helper'),
  ),
)
_RDMA = Machine(
  label='nvidia-h200-141gb',
  networks=_numbered('rdma-', 0, 8),
  interfaces=_numbered('eth', 2, 8),  # eth1 is the node's second card for ordinary traffic
  volumes={'nvidia': '/home/kubernetes/bin/nvidia', 'gib': '/home/kubernetes/bin/gib'},
  mounts={'nvidia': '/usr/local/nvidia', 'gib': GIB},
  libraries=f'{LIBRARIES}:{GIB}/lib64',
  script=f'{GIB}/scripts/set_nccl_env.sh',
)
MACHINES = {
  'a3-highgpu-8g': _TCPX,
  'a3-megagpu-8g': _TCPXO,
  'a3-ultragpu-8g': _RDMA,
  'a4-highgpu-8g': dataclasses.replace(_RDMA, label='nvidia-b200'),
}

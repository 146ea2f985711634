"""The pods of a JobSet on GKE: one per host of a TPU slice, or one per node of 8 GPUs."""

from __future__ import annotations

from typing import Any

from launch import gpus
from launch.job import Job
from launch.tpus import Slice

Manifest = dict[str, Any]

CONTAINER, WORKERS = 'rolegen', 'workers'
KILL_S = 30  # between host_entry's own limit and the pod's
PORT = 8482  # of process 0, where the others join; on TPUs jax's own


def template(job: Job) -> Manifest:
  """Return the template of the job's pods: annotations and specification."""
  on_gpus = job.accelerator in gpus.MACHINES
  spec = _gpu_pod(job, gpus.MACHINES[job.accelerator]) if on_gpus else _tpu_pod(job)
  annotations = gpus.MACHINES[job.accelerator].annotations() if on_gpus else {}
  if not job.spot:
    # The autoscaler moves pods to empty a node; that would restart the whole job.
    annotations['cluster-autoscaler.kubernetes.io/safe-to-evict'] = 'false'
  return {'metadata': {'annotations': annotations}, 'spec': spec} if annotations else {'spec': spec}


def _tpu_pod(job: Job) -> Manifest:
  tpu_slice = Slice.of(job.accelerator, job.topology)
  node_labels = {
    'cloud.google.com/gke-tpu-accelerator': tpu_slice.generation.label,
    'cloud.google.com/gke-tpu-topology': tpu_slice.topology,
  }
  container = _container(job, job.host_command())
  if job.slices > 1:
    container['env'] = _slice_variables(job)
  # The TPU's device files and a new claim belong to root, whatever user the image names.
  container['securityContext'] = {'runAsUser': 0}
  container['resources'] = {'limits': {'google.com/tpu': tpu_slice.chips_per_host}}
  return _pod(job, node_labels, container)


def _slice_variables(job: Job) -> list[Manifest]:
  """Return what tells libtpu of the other slices. A Job of the JobSet is a slice."""
  job_index = "metadata.labels['jobset.sigs.k8s.io/job-index']"
  return [
    *_variables(
      {
        'MEGASCALE_NUM_SLICES': str(job.slices),
        'MEGASCALE_COORDINATOR_ADDRESS': _first_pod(job),
      }
    ),
    {'name': 'MEGASCALE_SLICE_ID', 'valueFrom': {'fieldRef': {'fieldPath': job_index}}},
  ]


def _gpu_pod(job: Job, machine: gpus.Machine) -> Manifest:
  command = job.host_command(f'--coordinator={_first_pod(job)}:{PORT}')
  if machine.script:
    # exec: signals reach host_entry, which is the container's first process then.
    command = ['bash', '-c', f'source {machine.script} && exec "$@"', CONTAINER, *command]
  container = _container(job, command)
  container['env'] = _variables({'LD_LIBRARY_PATH': machine.libraries} | machine.variables)
  container['securityContext'] = {'runAsUser': 0, 'capabilities': {'add': ['IPC_LOCK']}}
  container['resources'] = {'limits': {'nvidia.com/gpu': gpus.GPUS_OF_A_NODE}}
  container['volumeMounts'] += _mounts({'shared-memory': '/dev/shm'} | machine.mounts)
  pod = _pod(job, {'cloud.google.com/gke-accelerator': machine.label}, container)
  pod['volumes'].append({'name': 'shared-memory', 'emptyDir': {'medium': 'Memory'}})
  pod['volumes'] += [
    {'name': name, 'hostPath': {'path': path}} for name, path in machine.volumes.items()
  ]
  if machine.daemon:
    pod['initContainers'] = [_sidecar(machine.daemon)]
  return pod


def _sidecar(daemon: gpus.Daemon) -> Manifest:
  return {
    'name': daemon.name,
    'image': daemon.image,
    'restartPolicy': 'Always',  # which makes a sidecar of it: it ends with the training
    'command': list(daemon.command),
    'env': _variables({'LD_LIBRARY_PATH': gpus.LIBRARIES}),
    'securityContext': {'capabilities': {'add': list(daemon.capabilities)}},
    'volumeMounts': _mounts(daemon.mounts),
  }


def _container(job: Job, command: list[str]) -> Manifest:
  return {
    'name': CONTAINER,
    'image': job.image,
    'command': command,
    'volumeMounts': _mounts(({'runs': job.mount} if job.claim else {}) | _host_cache(job)),
  }


def _pod(job: Job, node_labels: dict[str, str], container: Manifest) -> Manifest:
  if job.spot:
    node_labels['cloud.google.com/gke-spot'] = 'true'
  if job.reservation:
    node_labels['cloud.google.com/reservation-name'] = job.reservation
  pod: Manifest = {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': job.grace_s + KILL_S,
    'nodeSelector': node_labels,
    'containers': [container],
    'volumes': [],
  }
  if job.claim:
    pod['volumes'].append({'name': 'runs', 'persistentVolumeClaim': {'claimName': job.claim}})
  pod['volumes'] += [
    {'name': name, 'hostPath': {'path': path, 'type': 'DirectoryOrCreate'}}
    for name, path in _host_cache(job).items()
  ]
  if job.service_account:
    pod['serviceAccountName'] = job.service_account
  if job.priority_class:
    pod['priorityClassName'] = job.priority_class
  return pod


def _host_cache(job: Job) -> dict[str, str]:
  """Return the folder of the node that outlives its pods."""
  return {'host-cache': job.host_cache} if job.host_cache else {}


def _first_pod(job: Job) -> str:
  """Return the name of the first pod, where process 0 runs, in the JobSet's own DNS."""
  return f'{job.name}-{WORKERS}-0-0.{job.name}'


def _variables(values: dict[str, str]) -> list[Manifest]:
  return [{'name': name, 'value': value} for name, value in values.items()]


def _mounts(paths: dict[str, str]) -> list[Manifest]:
  return [{'name': name, 'mountPath': path} for name, path in paths.items()]

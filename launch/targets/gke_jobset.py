"""GKE: a JobSet of one TPU slice, one pod per host. Needs JobSet 0.10 or later.

How a pod ends decides what happens, by the first rule that matches:

  disruption (eviction, drain, spot)   all pods restart, not counted
  exit 42, preempted and saved         all pods restart, not counted
  exit 2 or 3                          the JobSet fails at once
  anything else (134, signals)         all pods restart, counted: at most `max_restarts`

A pod rule fails its Job. The Job's message names the index of the rule, and the JobSet chooses its
action by that index (`onJobFailureMessagePatterns`, new in JobSet 0.10).
"""

from __future__ import annotations

from typing import Any

import yaml

from launch.job import Job
from launch.tpus import Slice

Manifest = dict[str, Any]

CONTAINER = 'rolegen'
KILL_S = 30  # between host_entry's own limit and the pod's


def render(job: Job) -> str:
  """Return the manifest for `kubectl apply`."""
  return yaml.safe_dump(manifest(job), sort_keys=False, width=1000)


def manifest(job: Job) -> Manifest:
  """Return the JobSet as nested dictionaries."""
  hosts = Slice.of(job.accelerator, job.topology).hosts
  rules = _failure_rules()
  workers = {
    'parallelism': hosts,
    'completions': hosts,
    'completionMode': 'Indexed',
    'backoffLimit': 0,
    'podFailurePolicy': {'rules': [{'action': 'FailJob', **cause} for _, cause in rules]},
    'template': {'spec': _pod(job)},
  }
  failure_policy = {
    'maxRestarts': job.max_restarts,
    'rules': [_jobset_rule(index, action) for index, (action, _) in enumerate(rules)],
  }
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': {
      'name': job.name,
      'namespace': job.namespace,
      # A node pool is a slice, and the pods of a Job get one to themselves.
      'annotations': {
        'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'
      },
    },
    'spec': {
      'failurePolicy': failure_policy,
      'replicatedJobs': [{'name': 'workers', 'replicas': 1, 'template': {'spec': workers}}],
    },
  }


def _failure_rules() -> list[tuple[str, Manifest]]:
  """Return (the JobSet's action, the cause in terms of a pod) of every rule, in order."""
  disruption = {'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]}
  return [
    ('RestartJobSetAndIgnoreMaxRestarts', disruption),
    ('RestartJobSetAndIgnoreMaxRestarts', _exit_codes(42)),
    ('FailJobSet', _exit_codes(2, 3)),
  ]


def _exit_codes(*codes: int) -> Manifest:
  return {'onExitCodes': {'containerName': CONTAINER, 'operator': 'In', 'values': list(codes)}}


def _jobset_rule(index: int, action: str) -> Manifest:
  return {
    'name': f'rule{index}',
    'action': action,
    'onJobFailureReasons': ['PodFailurePolicy'],
    'onJobFailureMessagePatterns': [f'.*FailJob rule at index {index}$'],
  }


def _pod(job: Job) -> Manifest:
  tpu_slice = Slice.of(job.accelerator, job.topology)
  node_labels = {
    'cloud.google.com/gke-tpu-accelerator': tpu_slice.generation.label,
    'cloud.google.com/gke-tpu-topology': tpu_slice.topology,
  }
  if job.spot:
    node_labels['cloud.google.com/gke-spot'] = 'true'
  container = {
    'name': CONTAINER,
    'image': job.image,
    'command': job.host_command(),
    # The TPU's device files and a new claim belong to root, whatever user the image names.
    'securityContext': {'runAsUser': 0},
    'resources': {'limits': {'google.com/tpu': tpu_slice.chips_per_host}},
    'volumeMounts': [{'name': 'runs', 'mountPath': job.mount}],
  }
  return {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': job.grace_s + KILL_S,
    'nodeSelector': node_labels,
    'containers': [container],
    'volumes': [{'name': 'runs', 'persistentVolumeClaim': {'claimName': job.claim}}],
  }

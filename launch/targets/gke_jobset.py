"""GKE: a JobSet of TPU slices, or of nodes with GPUs, one pod per host. Needs JobSet 0.10 or later.

A Job of the JobSet is a slice; all nodes with GPUs are one Job.

How a pod ends decides what happens, by the first rule that matches:

  disruption (eviction, drain, spot)   all pods restart, not counted
  exit 42, preempted and saved         all pods restart, not counted
  exit 2 or 3                          the JobSet fails at once
  anything else (134, signals)         all pods restart, counted: at most `max_restarts`

A pod rule fails its Job. The Job's message names the index of the rule, and the JobSet chooses its
action by that index (`onJobFailureMessagePatterns`, new in JobSet 0.10).
"""

from __future__ import annotations

import yaml

from launch import gpus
from launch.job import Job
from launch.targets import gke_pods
from launch.targets.gke_pods import CONTAINER, WORKERS, Manifest


def render(job: Job) -> str:
  """Return the manifest for `kubectl apply`."""
  return yaml.safe_dump(manifest(job), sort_keys=False, width=1000)


def manifest(job: Job) -> Manifest:
  """Return the JobSet as nested dictionaries."""
  hosts = job.processes // job.slices
  rules = _failure_rules()
  workers = {
    'parallelism': hosts,
    'completions': hosts,
    'completionMode': 'Indexed',
    'backoffLimit': 0,
    'podFailurePolicy': {'rules': [{'action': 'FailJob', **cause} for _, cause in rules]},
    'template': gke_pods.template(job),
  }
  failure_policy = {
    'maxRestarts': job.max_restarts,
    'rules': [_jobset_rule(index, action) for index, (action, _) in enumerate(rules)],
  }
  replicated = {'name': WORKERS, 'replicas': job.slices, 'template': {'spec': workers}}
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': _metadata(job),
    'spec': {'failurePolicy': failure_policy, 'replicatedJobs': [replicated]},
  }


def _metadata(job: Job) -> Manifest:
  metadata: Manifest = {'name': job.name, 'namespace': job.namespace}
  if job.queue:
    metadata['labels'] = {'kueue.x-k8s.io/queue-name': job.queue}
  if job.accelerator not in gpus.MACHINES:
    # A node pool is a slice, and the pods of a Job get one to themselves.
    topology = 'cloud.google.com/gke-nodepool'
    metadata['annotations'] = {'alpha.jobset.sigs.k8s.io/exclusive-topology': topology}
  return metadata


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

"""GKE: a JobSet of one TPU slice, one pod a host. Needs JobSet 0.10 or later (`onJobFailureMessagePatterns`).

What ends a pod decides what happens, by the first rule that matches:

  disruption (eviction, drain, spot)   all pods anew, not counted
  exit 42, preempted and saved         all pods anew, not counted
  exit 2 or 3                          the JobSet fails at once
  anything else (134, signals)         all pods anew, counted: at most `max_restarts`

A pod rule fails its Job; the Job's message names the rule's index, by which the JobSet picks its action.
"""

from __future__ import annotations

import yaml

from launch.job import Job
from launch.tpus import Slice

CONTAINER = 'rolegen'
KILL_S = 30  # between host_entry's own limit and the pod's


def manifest(job: Job) -> dict:
  slice_ = Slice.of(job.accelerator, job.topology)
  exits = lambda *codes: {'onExitCodes': {'containerName': CONTAINER, 'operator': 'In', 'values': list(codes)}}
  causes = (
      ('RestartJobSetAndIgnoreMaxRestarts', {'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]}),
      ('RestartJobSetAndIgnoreMaxRestarts', exits(42)),
      ('FailJobSet', exits(2, 3)),
  )
  set_rules = [
      {'name': f'rule{i}', 'action': action, 'onJobFailureReasons': ['PodFailurePolicy'],
       'onJobFailureMessagePatterns': [f'.*FailJob rule at index {i}$']}
      for i, (action, _) in enumerate(causes)
  ]
  selector = {'cloud.google.com/gke-tpu-accelerator': slice_.generation.label, 'cloud.google.com/gke-tpu-topology': slice_.topology}
  if job.spot:
    selector['cloud.google.com/gke-spot'] = 'true'
  container = {
      'name': CONTAINER,
      'image': job.image,
      'command': job.host_command(),
      'resources': {'limits': {'google.com/tpu': slice_.chips_per_host}},
      'volumeMounts': [{'name': 'runs', 'mountPath': job.mount}],
  }
  pod = {
      'restartPolicy': 'Never',
      'terminationGracePeriodSeconds': job.grace_s + KILL_S,
      'nodeSelector': selector,
      'containers': [container],
      'volumes': [{'name': 'runs', 'persistentVolumeClaim': {'claimName': job.claim}}],
  }
  workers = {
      'parallelism': slice_.hosts,
      'completions': slice_.hosts,
      'completionMode': 'Indexed',
      'backoffLimit': 0,
      'podFailurePolicy': {'rules': [{'action': 'FailJob', **cause} for _, cause in causes]},
      'template': {'spec': pod},
  }
  return {
      'apiVersion': 'jobset.x-k8s.io/v1alpha2',
      'kind': 'JobSet',
      'metadata': {
          'name': job.name, 'namespace': job.namespace,
          # The pods of a Job get a node pool, which is a slice, to themselves.
          'annotations': {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'},
      },
      'spec': {
          'failurePolicy': {'maxRestarts': job.max_restarts, 'rules': set_rules},
          'replicatedJobs': [{'name': 'workers', 'replicas': 1, 'template': {'spec': workers}}],
      },
  }


def render(job: Job) -> str:
  """The manifest for `kubectl apply`."""
  return yaml.safe_dump(manifest(job), sort_keys=False, width=1000)

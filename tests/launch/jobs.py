"""One job per target, for golden files and checks."""

from launch.job import Job


def _gpus(machine: str, spot: bool = False) -> Job:
  return Job(
    'gke_jobset',
    'pod:h100_64',
    '/mnt/rolegen/runs/gpus',
    accelerator=machine,
    nodes=8,
    spot=spot,
    image='registry.example/rolegen:cuda',
    claim='runs',
  )


JOBS = {
  'local.sh': Job(
    'local', 'demo', 'runs/two', processes=2, devices_per_process=2, set=('loop.worlds=6',)
  ),
  'slurm_gpu.sh': Job(
    'slurm',
    'demo',
    'runs/gpus',
    nodes=2,
    gpus_per_node=8,
    partition='gpu',
    account='lab',
    setup='module load cuda',
    xla_flags=('gpu_latency_hiding',),
    set=('mesh.fsdp=8', 'evaluation.ks=(1,10)'),
    profile=('warmup:5', 'loop:10-14'),
    profile_processes=('0', '15'),
    tracker='wandb',
  ),
  'slurm_cpu.sh': Job('slurm', 'demo', 'runs/cpus', nodes=4, max_restarts=0),
  'tpu_vm.sh': Job(
    'tpu_vm',
    'demo',
    '/mnt/nfs/runs/v5e',
    accelerator='v5e',
    topology='4x4',
    zone='us-west4-a',
    project='my-project',
    spot=True,
    setup='mountpoint -q /mnt/nfs || sudo mount /mnt/nfs',
    xla_flags=('tpu_latency_hiding', 'tpu_async_all_gather'),
  ),
  'gke_jobset.yaml': Job(
    'gke_jobset',
    'demo',
    '/mnt/rolegen/runs/v5p',
    accelerator='v5p',
    topology='2x2x4',
    spot=True,
    namespace='research',
    image='registry.example/rolegen:1',
    claim='runs',
    set=('mesh.fsdp=16',),
  ),
  'gke_jobset_slices.yaml': Job(
    'gke_jobset',
    'pod:v6e_1024',
    '/mnt/rolegen/runs/v6e',
    accelerator='v6e',
    topology='16x16',
    slices=4,
    namespace='research',
    image='registry.example/rolegen:1',
    claim='runs',
    queue='research-queue',
    priority_class='high',
    reservation='v6e-spring',
    start_s=3600,
    host_cache='/var/cache/rolegen',
  ),
  'gke_jobset_a3_high.yaml': _gpus('a3-highgpu-8g'),
  'gke_jobset_a3_mega.yaml': _gpus('a3-megagpu-8g'),
  'gke_jobset_a3_ultra.yaml': _gpus('a3-ultragpu-8g'),
  'gke_jobset_a4.yaml': _gpus('a4-highgpu-8g', spot=True),
}

"""One job per target, for golden files and checks."""

from launch.job import Job

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
}

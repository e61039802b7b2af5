"""RLlib's DQN with Hare & Tortoise on CartPole. Run: python examples/cartpole.py [ITERATIONS]"""

import sys

from ht_ray.rllib import HTDQNConfig


def main(iterations: int) -> None:
    config = (
        HTDQNConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0)
        .reporting(min_sample_timesteps_per_iteration=200)
        # The target network is the tortoise; the online network is set back to it every 500 updates.
        .training(lr=5e-4, momentum=0.995, reset_interval=500, num_steps_sampled_before_learning_starts=200)
        .debugging(seed=0)
    )
    algorithm = config.build_algo()
    for iteration in range(1, iterations + 1):
        result = algorithm.train()
        learned = result["learners"]["default_policy"]
        print(
            f"iteration {iteration}: mean return {result['env_runners'].get('episode_return_mean', float('nan')):.1f}, "
            f"{learned.get('tortoise_updates', 0):.0f} updates, {learned.get('tortoise_resets', 0):.0f} resets"
        )
    algorithm.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)

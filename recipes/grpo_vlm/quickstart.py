"""GRPO with a judge as the reward, as short as it gets: the embedded policy and judge, under a minute on a laptop.

    python recipes/grpo_vlm/quickstart.py

The mean reward rises from 0.43 in the first epoch to about 0.7 in the fourth. For a model of your own replace the
policy, its processor and the rows; `FlexJudgeReward()` without settings chooses the judge by the machine.
"""

from flexjudge_recipes.nano import vlm_task

from trl import GRPOConfig, GRPOTrainer

from flexjudge_reward import FlexJudgeReward

if __name__ == "__main__":
    reward = FlexJudgeReward(model="nano")
    args = GRPOConfig(
        output_dir="runs/quickstart",
        num_train_epochs=4,
        per_device_train_batch_size=64,  # eight questions, eight answers to each
        learning_rate=1e-3,
        max_completion_length=8,
        logging_steps=4,  # an epoch
        save_strategy="no",
        bf16=False,  # TRL's default needs a GPU
    )
    trainer = GRPOTrainer(
        model=vlm_task.policy(),
        processing_class=vlm_task.processor(),
        reward_funcs=[reward],
        args=args,
        train_dataset=vlm_task.training_rows(32, "quickstart"),
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    print(f"reward {rewards[0]:.3f} -> {rewards[-1]:.3f}; {reward.summary}")

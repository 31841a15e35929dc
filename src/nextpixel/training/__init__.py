"""The training loop and the runs on it: pretraining, fine-tuning, distillation.

May use evaluation. pretrain (pretraining.py) calls start_run, which chooses what the run starts from
(initial.initial_model), decodes the images (run_images.decode_sets),
resolves every "auto" (decisions.place, decisions.decide), checks the memory (forecast.check_fits) and writes the run
folder (setup.create_run). It then calls train_run, which opens that run (setup.open_run), builds or loads the model,
and passes it with its batches, step and evaluation as a Training to loop.train. finetune and distill work alike.
"""

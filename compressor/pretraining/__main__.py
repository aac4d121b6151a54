"""`python -m compressor.pretraining`, see `commands`."""

from compressor.process.threads import wait_briefly

if __name__ == "__main__":
    wait_briefly()
    from compressor.pretraining.commands import main  # brings torch, whose threads read the environment once

    main()

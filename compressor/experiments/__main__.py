"""`python -m compressor.experiments`, see `costs`."""

from compressor.process.threads import add_up_alike, wait_briefly

if __name__ == "__main__":
    wait_briefly()
    add_up_alike()
    from compressor.experiments.costs import main  # brings torch, whose threads read the environment once

    main()

"""What the commands share. Nothing here is run by itself.

    command, errors        how a command starts and ends; a user's errors
    paths, atomic, locks   what may be read; outputs that appear whole; one writer per output
    class_list, tsv, arrays, json_file, score_table    each reads one kind of file and checks all of it
    array_writer, run_folder                           write arrays, and the folder of a run
    tsv_kernel, kmeans, threads, images, figures       compiled parsing, references, read-ahead, image files, pictures
    train_step, validation, devices, tensorboard_log   parts of a training
    sample_weights, key_index                          what each row trains a classifier with; joins by key
    classifier, classifier_data, classifier_report     trains a classifier; on features or images; its test
    image_rows, networks   lists of images; the networks that read them
    progress_folder        what a long command keeps until its output is written
    scoring, scorer        opens a run for scoring; computes the scores
    metrics, report        every measure; their intervals and pictures

Where something new goes:

    a loss term            model.loss_terms and LOSS_TERMS, with a setting in LossSettings and a flag of that name in train.py
    a score                computed in scorer.Scorer, named in score_table: SCORES, Scores, COLUMNS and the line of a table
    a kind of bad row      tsv.why_not_columns or why_not_text; of numbers tsv.Parser, and arrays.FeatureArray for .npy
    an input format        a module beside tsv that yields tsv.Block, chosen by suffix where commands make a tsv.RowReader
    a picture              report.write for the validation report, with figures
    a command              util/, one file
"""

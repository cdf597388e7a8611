"""What the commands share. Nothing here is run by itself.

    command, errors        how a command starts and ends; a user's errors
    paths, atomic, locks   what may be read; outputs that appear whole; one writer per output
    rows                   reads rows of any format, and deals with bad ones; the formats: tsv, csv_rows, parquet_rows, array_rows
    class_list, tsv, arrays, json_file, score_table    each reads one kind of file and checks all of it
    decisions, label_formats                           what people said about rows; the same in formats of others
    batches, thumbnails, web, page/                    the page: who is asked what, its images, its guard, its HTML and script
    array_writer, run_folder                           write arrays, and the folder of a run
    checksums                                          ties an array to its keys and its class list
    tsv_kernel, kmeans, threads, images, figures       compiled parsing, references, read-ahead, image files, pictures
    train_step, validation, devices, tensorboard_log   parts of a training
    sample_weights, key_index                          what each row trains a classifier with; joins by key
    classifier, classifier_data, classifier_report     trains a classifier; on features or images; its test
    classifier_parts       which classifiers are trained, one per fold and one on all rows
    image_rows, networks   lists of images; the networks that read them
    progress_folder        what a long command keeps until its output is written
    subcommand             runs commands from within a command
    scoring, scorer        opens a run for scoring; computes the scores
    other_methods, label_noise_methods    what CleanNet is compared with
    neighbours, styles     nearest rows by the cosine of their features; what style an image is of
    metrics, report        every measure; their intervals and pictures
    calibration            makes a probability that of a correct label, by verified rows
    confident_joint        the share of mislabeled rows of each class without any, and the shift of its probabilities to it

Where something new goes:

    a loss term            model.loss_terms and LOSS_TERMS, with a setting in LossSettings and a flag of that name in train.py
    a score                computed in scorer.Scorer, named in score_table: SCORES, Scores, COLUMNS and the line of a table
    a kind of bad row      tsv.why_not_columns or why_not_text; of numbers tsv.Parser, and arrays.FeatureArray for .npy
    an input format        a module like parquet_rows, whose class yields tsv.Block, chosen by suffix in rows.open_source
    a picture              report.write for the validation report, with figures
    a command              util/, one file
"""
